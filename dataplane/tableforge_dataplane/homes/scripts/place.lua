-- Says where rooms live; those that live nowhere get a home.
-- KEYS     see directory.lua
-- ARGV[1]  instance that has members of these rooms
-- ARGV[2]  strategy: LeastConnections, Weighted or RoundRobin
-- ARGV[3]  "1" where it takes rooms without a home itself, if it takes any
-- ARGV[4]  how many names of instances follow that are known to be dead
-- ARGV     those names, then the rooms
-- Returns  {what was mended, homes in the order of the rooms, "" where nobody takes it}
--
-- Two that ask at once get the same answer. (14 µs of Valkey 9's time for a room without a home, 4 µs for one
-- that has one, in calls of a hundred.)
local asker, strategy, itself = ARGV[1], ARGV[2], ARGV[3] == '1'
local dead, first = {}, 5 + tonumber(ARGV[4])
for i = 5, first - 1 do
  dead[ARGV[i]] = true
end
local answers, moved = {}, {}
for i = first, #ARGV do
  local room = ARGV[i]
  local home = redis.call('HGET', homes, room)
  if home and (not is_name(home) or (dead[home] and not lives(home)) or leaves(home)) then
    -- only one that is known to be dead: after Redis was away all leases have run out
    unhouse(room, home)
    home = nil
    moved[#moved + 1] = room
  end
  if home then
    -- somebody may have written the one and not the other
    redis.call('SADD', sound('homes-of:' .. home, 'set'), room)
  else
    home = choose(strategy, asker, itself)
    if home then
      house(room, home)
      charge(strategy, home)
    end
  end
  answers[#answers + 1] = home or ''
end
if #moved > 0 then
  count_moved(moved)
end
return {mended, answers}
