-- Who is in a room.
--
-- KEYS[1]  presence (see presence.lua)
-- ARGV     1 most users to name; of a room with more, some
-- Returns  {rev, users, {field, value, …}}; rev 0 where nobody is there. The fields may have `rev` among them.
local size = redis.call('HLEN', KEYS[1])
if size == 0 then
  return {0, 0, {}}
end
local rev = tonumber(redis.call('HGET', KEYS[1], 'rev'))
local most = tonumber(ARGV[1])
if size - 1 <= most then
  return {rev, size - 1, redis.call('HGETALL', KEYS[1])}
end
return {rev, size - 1, redis.call('HSCAN', KEYS[1], 0, 'COUNT', most)[2]}
