-- Removes an instance that is gone for good, whatever speaks for its life: its homes, some at a time, then all.
-- KEYS     see directory.lua
-- ARGV[1]  fence
-- ARGV[2]  instance
-- ARGV[3]  how many homes at a time
-- Returns  {what was mended, {1, or 0 where the fence is old; the latest fence; 1 where it was removed, 2 where
--          there are homes left to free, 0 where there was none of this name}}
local admitted, fence = admit(ARGV[1])
if not admitted then
  return {mended, {0, fence}}
end
local instance = ARGV[2]
step_down(instance, true)
local known = redis.call('DEL', base .. 'lease:' .. instance, base .. 'headcount:' .. instance, base .. 'rooms:' .. instance)
if vacate(instance, ARGV[3]) > 0 then
  count_moved(nil)
  return {mended, {1, fence, 2}}
end
known = known + redis.call('HDEL', base .. 'records', instance)
known = known + redis.call('HDEL', sound('orders', 'hash'), instance)
redis.call('HDEL', sound('sheds', 'hash'), instance)
redis.call('DEL', base .. 'homes-of:' .. instance)
return {mended, {1, fence, known > 0 and 1 or 0}}
