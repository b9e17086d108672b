-- Removes the record of an instance that was found dead, unless its name lives again.
-- KEYS[1]  the hash of records
-- KEYS[2]  the instance's lease
-- KEYS[3]  the instance's rooms
-- ARGV[1]  instance
-- Returns  1 where this call removed it, 0 where it lives or another was faster
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('DEL', KEYS[3])
return redis.call('HDEL', KEYS[1], ARGV[1])
