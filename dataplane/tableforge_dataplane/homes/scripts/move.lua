-- Moves homes, each where it is still where it is supposed to be.
-- KEYS     see directory.lua
-- ARGV[1]  fence
-- ARGV[2]  strategy
-- ARGV     room, source and target of each move
-- Returns  {what was mended, {1 or 0 where the fence is old; the latest fence; an outcome for each move}}
local admitted, fence = admit(ARGV[1])
if not admitted then
  return {mended, {0, fence}}
end
local places = sound('places', 'zset')
local outcomes, moved = {1, fence}, {}
for i = 3, #ARGV, 3 do
  local room, source, target = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local home = redis.call('HGET', homes, room)
  local outcome = 'moved'
  if not home then
    outcome = 'no_such_room'
  elseif home == target then
    -- the same command again, or what it wants is so already
    redis.call('SADD', sound('homes-of:' .. home, 'set'), room)
  elseif home ~= source then
    outcome = 'elsewhere'
  elseif not redis.call('ZSCORE', places, target) or not lives(target) or leaves(target) then
    outcome = 'no_target'
  else
    unhouse(room, home)
    house(room, target)
    charge(ARGV[2], target)
    moved[#moved + 1] = room
  end
  outcomes[#outcomes + 1] = outcome
end
if #moved > 0 then
  count_moved(moved)
end
return {mended, outcomes}
