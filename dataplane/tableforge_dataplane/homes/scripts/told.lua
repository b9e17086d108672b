-- Reads what an instance is told to be and to do.
-- KEYS     see directory.lua
-- ARGV[1]  instance
-- ARGV[2]  "" or an order that could not be understood: it is removed where it is still that
-- ARGV[3]  "" or an order to shed that could not be understood, likewise
-- ARGV     ids of orders to shed that were carried out
-- Returns  {what was mended, {how it should be, as JSON, or ""; an order to shed, as JSON, or ""; and the
--          latter as it lies in Redis}}
local instance = ARGV[1]
local orders, sheds = sound('orders', 'hash'), sound('sheds', 'hash')
for _, key in ipairs({orders, sheds, base .. 'fence'}) do
  redis.call('PEXPIRE', key, kept_ms)
end
local order = redis.call('HGET', orders, instance)
if order and order == ARGV[2] then
  redis.call('HDEL', orders, instance)
  mended[#mended + 1] = 'orders'
  order = nil
end
local stored = redis.call('HGET', sheds, instance)
if not stored then
  return {mended, {order or '', '', ''}}
end
local bad = stored == ARGV[3]
local till, shed = string.match(stored, '^(%d+) (.*)$')
local readable, fields = pcall(cjson.decode, shed or '')
if bad or not till or not readable or type(fields) ~= 'table' then
  mended[#mended + 1] = 'sheds'
  till = '0'
else
  for i = 4, #ARGV do
    if fields['id'] == ARGV[i] then
      till = '0'
    end
  end
end
if tonumber(redis.call('TIME')[1]) >= tonumber(till) then
  redis.call('HDEL', sheds, instance)
  return {mended, {order or '', '', ''}}
end
return {mended, {order or '', shed, stored}}
