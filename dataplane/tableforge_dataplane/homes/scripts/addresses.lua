-- Says of instances where clients reach them, whether they live, and whether they take anybody.
-- KEYS     see directory.lua
-- ARGV     instances
-- Returns  {what was mended, {address or "", 0 without a lease, 1 with one, 2 where it also
--          takes rooms, and so on for each}}
local stands, places = sound('stands', 'hash'), sound('places', 'zset')
local answers = {}
for i = 1, #ARGV do
  local stand = redis.call('HGET', stands, ARGV[i]) or ''
  answers[#answers + 1] = string.match(stand, '^%S+ (.+)$') or ''
  answers[#answers + 1] = not lives(ARGV[i]) and 0 or redis.call('ZSCORE', places, ARGV[i]) and 2 or 1
end
return {mended, answers}
