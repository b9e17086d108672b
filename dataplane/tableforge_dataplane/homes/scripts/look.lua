-- Says where rooms live.
-- KEYS     see directory.lua
-- ARGV     rooms
-- Returns  {what was mended, homes in the order of the rooms, "" where there is none}
local answers = redis.call('HMGET', homes, unpack(ARGV))
for i = 1, #ARGV do
  if not is_name(answers[i]) then
    answers[i] = ''
  end
end
return {mended, answers}
