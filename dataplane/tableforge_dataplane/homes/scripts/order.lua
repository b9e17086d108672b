-- Notes how instances should be.
-- KEYS     see directory.lua
-- ARGV[1]  fence
-- ARGV     of each: instance, "1" where it is cordoned, the order as JSON
-- Returns  {what was mended, {1, or 0 where the fence is old; the latest fence; instances that don't exist}}
local admitted, fence = admit(ARGV[1])
if not admitted then
  return {mended, {0, fence}}
end
local orders, answers = sound('orders', 'hash'), {1, fence}
for i = 2, #ARGV, 3 do
  local instance = ARGV[i]
  if not exists(instance) then
    answers[#answers + 1] = instance
  else
    redis.call('HSET', orders, instance, ARGV[i + 2])
    if ARGV[i + 1] == '1' then
      -- at once: what is placed from now on goes elsewhere
      step_down(instance, false)
    end
  end
end
redis.call('PEXPIRE', orders, kept_ms)
return {mended, answers}
