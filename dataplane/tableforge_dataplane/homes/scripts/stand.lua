-- Writes whether an instance takes rooms, and how much it has to do.
-- KEYS     see directory.lua
-- ARGV[1]  instance
-- ARGV[2]  boot id of the caller
-- ARGV[3]  strategy
-- ARGV[4]  "takes" rooms, "full" or "leaves"
-- ARGV[5]  its address by its own setting, or ""
-- ARGV[6]  its weight by its own setting
-- ARGV[7]  its connections
-- ARGV[8]  its capacity
-- ARGV[9]  the count of moves as it has read it before, or -1
-- Returns  {what was mended, {1 where it takes rooms, else 0; the count of moves; how many homes it is; 1 where
--          the rooms that follow are all that have moved since; these}}, or {what was mended, {}} where a newer
--          process holds its name
local instance, strategy, state = ARGV[1], ARGV[3], ARGV[4]
if redis.call('GET', base .. 'lease:' .. instance) ~= ARGV[2] then
  return {mended, {}}
end
local address, weight, cordoned = ARGV[5], tonumber(ARGV[6]), false
local readable, order = pcall(cjson.decode, redis.call('HGET', sound('orders', 'hash'), instance) or '{}')
if readable and type(order) == 'table' then
  cordoned = order['cordoned'] == true
  address = type(order['address']) == 'string' and order['address'] or address
  weight = type(order['weight']) == 'number' and order['weight'] > 0 and order['weight'] or weight
end
local share = strategy == 'Weighted' and weight or tonumber(ARGV[8])
local places, leaving = sound('places', 'zset'), sound('leaving', 'set')
local index, stands = sound('homes-of:' .. instance, 'set'), sound('stands', 'hash')
local takes = state == 'takes' and not cordoned and address ~= ''
if not takes then
  redis.call('ZREM', places, instance)
elseif strategy ~= 'RoundRobin' then
  redis.call('ZADD', places, string.format('%.17g', tonumber(ARGV[7]) / share), instance)
else
  local turn = tonumber(redis.call('ZSCORE', places, instance) or nil)
  if not (turn and turn >= 0 and turn <= 9e15) then
    redis.call('ZREM', places, instance)
    redis.call('ZADD', places, next_turn(places), instance)
  end
end
if state == 'leaves' then
  redis.call('SADD', leaving, instance)
else
  redis.call('SREM', leaving, instance)
end
redis.call('HSET', stands, instance, string.format('%.17g %s', math.min(1, 1 / share), address))
for _, key in ipairs({homes, index, places, stands, leaving, base .. 'moved', base .. 'changed', base .. 'swept'}) do
  redis.call('PEXPIRE', key, kept_ms)
end
local _, moved = number_at('moved')
local since = moved - tonumber(ARGV[9])
local answer = {takes and 1 or 0, moved, redis.call('SCARD', index), 0}
local changed = sound('changed', 'list')
if tonumber(ARGV[9]) >= 0 and since >= 0 and since <= redis.call('LLEN', changed) then
  answer[4] = 1
  if since > 0 then
    for _, room in ipairs(redis.call('LRANGE', changed, 0, since - 1)) do
      answer[#answer + 1] = room
    end
  end
end
return {mended, answer}
