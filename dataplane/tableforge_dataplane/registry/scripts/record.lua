-- Writes an instance's record, stamped with Redis's clock.
-- KEYS[1]  the hash of records
-- KEYS[2]  the instance's lease
-- ARGV[1]  instance
-- ARGV[2]  boot id of the caller
-- ARGV[3]  the record, a JSON object without `updatedAt`
-- ARGV[4]  how long all records are kept after the last one was written (ms)
-- Returns  1, or 0 where a newer process holds the instance's name
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local stamp = string.format(',"updatedAt":%s.%06d}', time[1], time[2])
redis.call('HSET', KEYS[1], ARGV[1], string.sub(ARGV[3], 1, -2) .. stamp)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
