-- Says which users have sockets at one holder, and publishes who came to the room by it and who went.
--
-- KEYS[1]  presence, a hash: rev      counted up by each change of who is there; it begins with the time (ms), so
--                                     that it doesn't run back where the hash was lost
--                            u<user>  "<since> <holder>=<sockets> …": a field for each user, so that who is the
--                                     first or the last is known without a look at the others
-- ARGV     1 channel, 2 PUBLISH or SPUBLISH, 3 the hash's lifetime (ms),
--          4 holder, <instance>|<boot>, 5 most users: a room with more publishes that it changed and no names,
--          then pairs: user, sockets there now (0: none any more)
-- Returns  {rev, users} as they are now; rev 0 where nobody is there
local key, holder = KEYS[1], ARGV[4]
local time = redis.call('TIME')
local before = tonumber(redis.call('HGET', key, 'rev') or '0')
local fields, sockets = {}, {}
for i = 6, #ARGV, 2 do
  fields[#fields + 1] = 'u' .. ARGV[i]
  sockets[#sockets + 1] = ARGV[i + 1]
end
local values = redis.call('HMGET', key, unpack(fields))

local function parted(value)
  local first, last = string.find(value, ' ' .. holder .. '=', 1, true)
  if not first then
    return value
  end
  local next_one = string.find(value, ' ', last, true)
  return string.sub(value, 1, first - 1) .. (next_one and string.sub(value, next_one) or '')
end

local set, gone, joined, left = {}, {}, {}, {}
for i, field in ipairs(fields) do
  local value = values[i]
  if sockets[i] ~= '0' then
    if not value then
      value = string.format('%d.%03d', time[1], math.floor(time[2] / 1000))
      joined[#joined + 1] = cjson.encode(string.sub(field, 2))
    end
    set[#set + 1] = field
    set[#set + 1] = parted(value) .. ' ' .. holder .. '=' .. sockets[i]
  elseif value then
    local rest = parted(value)
    if string.find(rest, ' ', 1, true) then
      set[#set + 1] = field
      set[#set + 1] = rest
    else
      gone[#gone + 1] = field
      left[#left + 1] = cjson.encode(string.sub(field, 2))
    end
  end
end

local rev = before
if #joined + #left > 0 then
  rev = before > 0 and before + 1 or time[1] * 1000 + math.floor(time[2] / 1000)
  set[#set + 1] = 'rev'
  set[#set + 1] = string.format('%.0f', rev)
end
-- HSET first: what Redis refuses without memory is then refused before anything was done
if #set > 0 then
  redis.call('HSET', key, unpack(set))
end
if #gone > 0 then
  redis.call('HDEL', key, unpack(gone))
end
local users = math.max(0, redis.call('HLEN', key) - 1)
if users == 0 then
  redis.call('DEL', key)
else
  redis.call('PEXPIRE', key, ARGV[3])
end
if rev ~= before then
  local names = '{}'
  if users <= tonumber(ARGV[5]) then
    names = '{"joined":[' .. table.concat(joined, ',') .. '],"left":[' .. table.concat(left, ',') .. ']}'
  end
  redis.call(redis.REDIS_VERSION_NUM and ARGV[2] or 'PUBLISH', ARGV[1], string.format('-1 %.0f %d 0 %s %s', rev, users, holder, names))
end
return {rev, users}
