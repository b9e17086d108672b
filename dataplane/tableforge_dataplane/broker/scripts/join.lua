-- Makes sure that a room has a position, and says which.
--
-- KEYS[1]  meta, KEYS[2]  log (see publish.lua)
-- ARGV     1 tag for an empty room's position 0, 2 most ms
-- Returns  {seq, tag} of the newest message, or {0, tag} of a room without any.
local m = redis.call('HMGET', KEYS[1], 's', 't')
if not m[1] then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 's', 0, 't', ARGV[1], 'b', 0, 'f', 1, 'h', 0, 'a', 0, 'x', 0)
  m = {'0', ARGV[1]}
end
local lifetime = math.floor(tonumber(ARGV[2]) * 1.125)
redis.call('PEXPIRE', KEYS[1], lifetime)
redis.call('PEXPIRE', KEYS[2], lifetime)
return {tonumber(m[1]), m[2]}
