-- Notes how far a user has handled its personal log. The marker only grows, and names a message that is there.
--
-- KEYS[1]  meta (field r: the marker, <seq>-<tag>), KEYS[2]  log (see publish.lua)
-- ARGV     1 seq, 2 tag
-- Returns  1 noted, 0 not: it is behind the marker, or names no message of this history that the log holds.
local m = redis.call('HMGET', KEYS[1], 's', 't', 'r')
local seq = tonumber(ARGV[1])
if not m[1] or seq < 1 or seq > tonumber(m[1]) then
  return 0
end
if m[3] and tonumber(string.match(m[3], '^%d+')) >= seq then
  return 0
end
local id = ARGV[1] .. '-' .. ARGV[2]
if not (seq == tonumber(m[1]) and ARGV[2] == m[2]) and #redis.call('XRANGE', KEYS[2], id, id) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'r', id)
return 1
