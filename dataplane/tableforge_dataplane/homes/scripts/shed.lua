-- Notes that an instance should send clients elsewhere, in the place of what it was told before.
-- KEYS     see directory.lua
-- ARGV[1]  fence
-- ARGV[2]  instance
-- ARGV[3]  for how many seconds it holds
-- ARGV[4]  the order as JSON
-- Returns  {what was mended, {1, or 0 where the fence is old; the latest fence; the instance where it doesn't
--          exist}}
local admitted, fence = admit(ARGV[1])
if not admitted then
  return {mended, {0, fence}}
end
if not exists(ARGV[2]) then
  return {mended, {1, fence, ARGV[2]}}
end
local sheds = sound('sheds', 'hash')
local till = string.format('%.0f', redis.call('TIME')[1] + ARGV[3])
redis.call('HSET', sheds, ARGV[2], till .. ' ' .. ARGV[4])
redis.call('PEXPIRE', sheds, kept_ms)
return {mended, {1, fence}}
