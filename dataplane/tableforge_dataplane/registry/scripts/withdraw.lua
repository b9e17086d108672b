-- Removes what an instance that stops has in the registry, unless it belongs to a newer process by then: its
-- homes some at a time, and its record last, so that others see what is left where it doesn't come to the end.
-- KEYS     see directory.lua
-- ARGV[1]  instance
-- ARGV[2]  boot id of the caller
-- ARGV[3]  how many homes at a time
-- Returns  {what was mended, outcome}: 1 where it was removed, 2 where there are homes left to free, 0 where it
--          belongs to another
--
-- What it was told to be stays: the container may only have been restarted.
local instance = ARGV[1]
local holder = redis.call('GET', base .. 'lease:' .. instance)
if holder and holder ~= ARGV[2] then
  return {mended, 0}
end
if not holder then
  local record = redis.call('HGET', base .. 'records', instance)
  local readable, fields = pcall(cjson.decode, record or '')
  if not readable or type(fields) ~= 'table' or fields['boot'] ~= ARGV[2] then
    return {mended, 0}
  end
end
redis.call('DEL', base .. 'lease:' .. instance, base .. 'rooms:' .. instance)
step_down(instance, true)
if vacate(instance, ARGV[3]) > 0 then
  count_moved(nil)
  return {mended, 2}
end
redis.call('HDEL', base .. 'records', instance)
return {mended, 1}
