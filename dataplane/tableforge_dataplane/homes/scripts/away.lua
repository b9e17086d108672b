-- Gives rooms of an instance that leaves another home each.
-- KEYS     see directory.lua
-- ARGV[1]  instance, the home that they must have
-- ARGV[2]  strategy
-- ARGV     rooms
-- Returns  {what was mended, homes in the order of the rooms, "" where nobody takes it}
local answers, moved = {}, {}
step_down(ARGV[1], false)
redis.call('SADD', sound('leaving', 'set'), ARGV[1])
for i = 3, #ARGV do
  local room = ARGV[i]
  local home = redis.call('HGET', homes, room)
  if home == ARGV[1] then
    unhouse(room, home)
    home = choose(ARGV[2], '', false)
    moved[#moved + 1] = room
    if home then
      house(room, home)
      charge(ARGV[2], home)
    end
  end
  answers[#answers + 1] = is_name(home) and home or ''
end
if #moved > 0 then
  count_moved(moved)
end
return {mended, answers}
