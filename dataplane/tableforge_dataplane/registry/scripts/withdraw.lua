-- Removes what an instance that stops has in the registry, unless it belongs to a newer process by then.
-- KEYS[1]  the hash of records
-- KEYS[2]  the instance's lease
-- KEYS[3]  the instance's rooms
-- ARGV[1]  instance
-- ARGV[2]  boot id of the caller
-- Returns  1 where it was removed
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return 0
end
if not holder then
  local record = redis.call('HGET', KEYS[1], ARGV[1])
  if not record or cjson.decode(record)['boot'] ~= ARGV[2] then
    return 0
  end
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
