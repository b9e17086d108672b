-- Makes sure that a room has a position, and says which.
--
-- KEYS[1]  meta, KEYS[2]  log (see publish.lua)
-- ARGV     1 tag for an empty room's position 0, 2 most ms
-- Returns  {seq, tag} of the newest message, or {0, tag} of a room without any.
--
-- A room that has a position can be joined while Redis refuses writes for want of a disk or of replicas: then
-- its lifetime is not begun anew, and who is in it sees to that later.
local m = redis.call('HMGET', KEYS[1], 's', 't')
if not m[1] then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 's', 0, 't', ARGV[1], 'b', 0, 'f', 1, 'h', 0, 'a', 0, 'x', 0)
  m = {'0', ARGV[1]}
end
local lifetime = math.floor(tonumber(ARGV[2]) * 1.125)
for _, key in ipairs(KEYS) do
  local answer = redis.pcall('PEXPIRE', key, lifetime)
  local refused = type(answer) == 'table' and answer['err']
  if refused and not (string.find(refused, 'MISCONF', 1, true) or string.find(refused, 'NOREPLICAS', 1, true)) then
    return answer
  end
end
return {tonumber(m[1]), m[2]}
