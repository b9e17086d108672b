-- Reads some of the rooms whose home an instance is, and puts its index right where it says otherwise.
-- KEYS     see directory.lua
-- ARGV[1]  instance
-- ARGV[2]  cursor, "0" at the beginning
-- ARGV[3]  about how many
-- Returns  {what was mended, {the next cursor, "0" at the end; rooms}}
local index = sound('homes-of:' .. ARGV[1], 'set')
local page = redis.call('SSCAN', index, ARGV[2], 'COUNT', ARGV[3])
local rooms = {}
for _, room in ipairs(page[2]) do
  if not is_room(room) then
    unhouse(room, ARGV[1])
  elseif redis.call('HGET', homes, room) == ARGV[1] then
    rooms[#rooms + 1] = room
  else
    redis.call('SREM', index, room)
  end
end
return {mended, {page[1], rooms}}
