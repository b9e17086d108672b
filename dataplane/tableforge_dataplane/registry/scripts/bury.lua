-- Removes an instance that was found dead, unless its name lives again: its homes, some at a time, then its record.
-- KEYS     see directory.lua
-- ARGV[1]  instance
-- ARGV[2]  how many homes at a time
-- Returns  {what was mended, outcome}: 1 where this call removed the record, 2 where there are homes left to
--          free, 0 where it lives or another was faster
local instance = ARGV[1]
if lives(instance) then
  return {mended, 0}
end
step_down(instance, true)
local freed = vacate(instance, ARGV[2])
if freed > 0 then
  count_moved(nil)
  return {mended, 2}
end
redis.call('HDEL', sound('orders', 'hash'), instance)
redis.call('HDEL', sound('sheds', 'hash'), instance)
redis.call('DEL', base .. 'rooms:' .. instance)
return {mended, redis.call('HDEL', base .. 'records', instance)}
