-- What the scripts of the directory of homes begin with; each is appended to this.
-- KEYS[1]  the directory, a hash room -> instance: `…:homes`. All other keys begin as it does.
--
--   homes             see above
--   homes-of:<name>   a set: the rooms whose home is this instance, the hash the other way round
--   places            a sorted set of the instances that take rooms: the lowest score is next
--   stands            a hash instance -> "<what a room adds to its score> <its address>"
--   leaving           a set of instances that drain: what lives there needs another home
--   moved             a number, counted up by each home that changes or goes
--   changed           a list: the rooms that were, the newest first; it is cut where it gets long, and removed
--                     where a whole instance's homes went
--   orders            a hash instance -> how it should be, as JSON
--   sheds             a hash instance -> "<until when, Unix seconds> <an order to shed, as JSON>"
--   fence             a number, the highest that came with a command
--   swept             how far the sweep through `homes` has come
--   records, lease:<name>   the registry's
--
-- Somebody may have written nonsense into any of them. It counts for nothing and is removed.
local base = string.sub(KEYS[1], 1, -6)
-- How long after the last change something is left in a Redis that others use too; instances that live renew it.
local kept_ms = 86400000
local mended = {}

local looked_at = {}

local function sound(name, kind)
  local key = base .. name
  if looked_at[name] then
    return key
  end
  looked_at[name] = true
  local found = redis.call('TYPE', key)['ok']
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    mended[#mended + 1] = name
  end
  return key
end

local homes = sound('homes', 'hash')

local function is_name(text)
  return text and #text <= 253 and string.find(text, '^[%w._-]+$') ~= nil
end

local function is_room(text)
  return #text <= 128 and string.find(text, '^[%w._:-]+$') ~= nil
end

local function lives(instance)
  return redis.call('EXISTS', base .. 'lease:' .. instance) == 1
end

local function number_at(name)
  local key = sound(name, 'string')
  local text = redis.call('GET', key)
  local number = tonumber(text)
  if text and not (number and number >= 0 and number < 9e15 and number == math.floor(number)) then
    redis.call('DEL', key)
    mended[#mended + 1] = name
  end
  return key, redis.call('EXISTS', key) == 1 and number or 0
end

-- `rooms`: at most a thousand; nil: too many to name.
local function count_moved(rooms)
  local key, moved = number_at('moved')
  local changed = sound('changed', 'list')
  if rooms then
    redis.call('LPUSH', changed, unpack(rooms))
    redis.call('LTRIM', changed, 0, 999)
    redis.call('PEXPIRE', changed, kept_ms)
  else
    redis.call('DEL', changed)
  end
  redis.call('SET', key, string.format('%.0f', moved + (rooms and #rooms or 1)), 'PX', kept_ms)
end

local function unhouse(room, home)
  if is_name(home) then
    redis.call('SREM', sound('homes-of:' .. home, 'set'), room)
  end
  redis.call('HDEL', homes, room)
end

local function house(room, home)
  local index = sound('homes-of:' .. home, 'set')
  redis.call('HSET', homes, room, home)
  redis.call('SADD', index, room)
  redis.call('PEXPIRE', homes, kept_ms)
  redis.call('PEXPIRE', index, kept_ms)
end

-- Frees up to so many homes of an instance; how many.
local function vacate(instance, most)
  local index = sound('homes-of:' .. instance, 'set')
  local rooms = redis.call('SRANDMEMBER', index, most)
  for _, room in ipairs(rooms) do
    redis.call('SREM', index, room)
    if redis.call('HGET', homes, room) == instance then
      redis.call('HDEL', homes, room)
    end
  end
  return #rooms
end

-- It takes no rooms any more; `gone`: nor is it here in any other way.
local function step_down(instance, gone)
  redis.call('ZREM', sound('places', 'zset'), instance)
  if gone then
    redis.call('HDEL', sound('stands', 'hash'), instance)
    redis.call('SREM', sound('leaving', 'set'), instance)
  end
end

local function leaves(instance)
  return redis.call('SISMEMBER', sound('leaving', 'set'), instance) == 1
end

local function exists(instance)
  return lives(instance) or redis.call('HEXISTS', base .. 'records', instance) == 1
end

-- Who takes a room that `asker` has members of, or nil: the lowest score; `asker` where it takes rooms and
-- `itself` is so, or (but for turns) its score is as low.
local function choose(strategy, asker, itself)
  local places = sound('places', 'zset')
  local own = lives(asker) and tonumber(redis.call('ZSCORE', places, asker) or nil)
  if own and itself then
    return asker
  end
  while true do
    local first = redis.call('ZRANGE', places, 0, 0, 'WITHSCORES')
    if not first[1] then
      return nil
    end
    if is_name(first[1]) and lives(first[1]) and not leaves(first[1]) then
      if own and strategy ~= 'RoundRobin' and own <= tonumber(first[2]) then
        return asker
      end
      return first[1]
    end
    redis.call('ZREM', places, first[1])
  end
end

local function next_turn(places)
  local last = redis.call('ZREVRANGE', places, 0, 0, 'WITHSCORES')
  return string.format('%.0f', math.min(9e15, math.floor(tonumber(last[2] or 0))) + 1)
end

-- It took one room more: the next goes elsewhere, until its score is written anew.
local function charge(strategy, instance)
  local places = sound('places', 'zset')
  if not redis.call('ZSCORE', places, instance) then
    return
  end
  if strategy == 'RoundRobin' then
    redis.call('ZADD', places, next_turn(places), instance)
  else
    local stand = redis.call('HGET', sound('stands', 'hash'), instance) or ''
    local step = tonumber(string.match(stand, '^%S+') or nil)
    if not (step and step > 0 and step <= 1) then
      step = 0.001
    end
    redis.call('ZINCRBY', places, string.format('%.17g', step), instance)
  end
end

-- Whether a command with this fence still counts, and the highest there was.
local function admit(text)
  local key, highest = number_at('fence')
  local fence = tonumber(text)
  if fence < highest then
    return false, highest
  end
  redis.call('SET', key, string.format('%.0f', fence), 'PX', kept_ms)
  return true, fence
end
