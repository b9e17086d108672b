-- Removes instances that are gone for good, whatever speaks for their life: their homes, some at a time, then all.
-- KEYS     see directory.lua
-- ARGV[1]  fence
-- ARGV[2]  how many homes at a time
-- ARGV[3…] instances
-- Returns  {what was mended, {1, or 0 where the fence is old; the latest fence; for one instance after the other
--          1 where it was removed, 0 where there was none of this name, and last 2 where one has homes left to
--          free: it and those after it are for the next call}}
local admitted, fence = admit(ARGV[1])
if not admitted then
  return {mended, {0, fence}}
end
local outcomes = {1, fence}
local left = tonumber(ARGV[2])
for index = 3, #ARGV do
  local instance = ARGV[index]
  step_down(instance, true)
  local known = redis.call('DEL', base .. 'lease:' .. instance, base .. 'headcount:' .. instance, base .. 'rooms:' .. instance)
  local freed = vacate(instance, left)
  left = left - freed
  if freed > 0 then
    count_moved(nil)
  end
  if left <= 0 then
    outcomes[#outcomes + 1] = 2
    break
  end
  known = known + freed + redis.call('HDEL', base .. 'records', instance)
  known = known + redis.call('HDEL', sound('orders', 'hash'), instance)
  redis.call('HDEL', sound('sheds', 'hash'), instance)
  redis.call('DEL', base .. 'homes-of:' .. instance)
  outcomes[#outcomes + 1] = known > 0 and 1 or 0
end
return {mended, outcomes}
