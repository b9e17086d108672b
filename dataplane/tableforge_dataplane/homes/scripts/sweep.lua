-- Puts some of the directory right, going on where the last sweep ended, whoever's that was: homes that are no
-- instance's go, and each room is in its home's index.
-- KEYS     see directory.lua
-- ARGV[1]  about how many rooms
-- ARGV[2]  how many instances may have an order or a place beside those that exist
-- Returns  {what was mended, how many homes went}
local swept, cursor = number_at('swept')
local page = redis.call('HSCAN', homes, string.format('%.0f', cursor), 'COUNT', ARGV[1])
local went = {}
for i = 1, #page[2], 2 do
  local room, home = page[2][i], page[2][i + 1]
  if is_room(room) and is_name(home) and exists(home) then
    redis.call('SADD', sound('homes-of:' .. home, 'set'), room)
  else
    unhouse(room, home)
    went[#went + 1] = room
  end
end
if #went > 0 then
  count_moved(#went <= 1000 and went or nil)
end
-- a cursor is a whole 64-bit number, of which Lua keeps 53 bits: a larger one begins anew
local next_one = tonumber(page[1])
redis.call('SET', swept, next_one < 9e15 and page[1] or '0', 'PX', kept_ms)
if next_one == 0 then
  local most = redis.call('HLEN', base .. 'records') * 2 + tonumber(ARGV[2])
  for _, name in ipairs({'orders', 'stands', 'sheds'}) do
    local key = sound(name, 'hash')
    if redis.call('HLEN', key) > most then
      for _, instance in ipairs(redis.call('HKEYS', key)) do
        if not exists(instance) then
          redis.call('HDEL', key, instance)
        end
      end
    end
  end
end
return {mended, #went}
