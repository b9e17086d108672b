-- Frees rooms that nobody is in where they live.
-- KEYS     see directory.lua
-- ARGV[1]  instance, the home that they must have
-- ARGV     rooms
-- Returns  {what was mended, how many were freed}
local freed = {}
for i = 2, #ARGV do
  if redis.call('HGET', homes, ARGV[i]) == ARGV[1] then
    unhouse(ARGV[i], ARGV[1])
    freed[#freed + 1] = ARGV[i]
  end
end
if #freed > 0 then
  count_moved(freed)
end
return {mended, #freed}
