-- Stores one message in a room's log and publishes it, or says that it was stored before.
--
-- KEYS[1]  meta, a hash: s, t  seq and tag of the newest message
--                        b     bytes ever stored, h  bytes stored before the log's first entry
--                        f     seq of the log's first entry, a  when that was stored (ms)
--                        x     when both keys' lifetimes were last set (ms)
--                        and one field for each idempotency key the log reaches back to
-- KEYS[2]  log, a stream; an entry is <seq>-<tag> with the fields
--                        h  "<prev tag> <ts> <origin> <bytes stored before it>", k  its key, m  its body
-- ARGV     1 channel, 2 PUBLISH or SPUBLISH (which Redis 6.2 doesn't have), 3 most messages, 4 most bytes, 5 most ms,
--          6 tag, 7 origin, 8 key's field, 9 since ("" on a first attempt, else <seq>-<tag>), 10 body
-- Returns  {seq, tag, 0} stored; {seq, tag, 1} stored before; {-1, "", 0} the key is not there and the log
--          does not reach back to `since`, so nobody can say whether it was stored: nothing was done.
local meta, log = KEYS[1], KEYS[2]
local tag, key, body = ARGV[6], ARGV[8], ARGV[10]
local m = redis.call('HMGET', meta, 's', 't', 'b', 'f', 'h', 'a', 'x', key)

if m[8] then
  local seq, first_tag = string.match(m[8], '^(%d+)-(%d+)$')
  return {tonumber(seq), first_tag, 1}
end

if ARGV[9] ~= '' then
  local seq, since_tag = string.match(ARGV[9], '^(%d+)-(%d+)$')
  local reaches = false
  if m[1] and seq == m[1] then
    reaches = since_tag == m[2]
  elseif m[1] and tonumber(seq) < tonumber(m[1]) then
    -- the chain decides: the message after `since` names its predecessor's tag
    local next_one = redis.call('XRANGE', log, tostring(tonumber(seq) + 1), '+', 'COUNT', 1)[1]
    if next_one and string.match(next_one[1], '^%d+') == string.format('%d', tonumber(seq) + 1) then
      reaches = string.match(next_one[2][2], '^%d+') == since_tag
    end
  end
  if not reaches then
    return {-1, '', 0}
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ts = string.format('%d.%03d', time[1], math.floor(time[2] / 1000))
local max_age = tonumber(ARGV[5])
local seq, prev, before, first, cut, oldest, expiry
if m[1] then
  seq, prev, before = m[1] + 1, m[2], tonumber(m[3])
  first, cut, oldest, expiry = tonumber(m[4]), tonumber(m[5]), tonumber(m[6]), tonumber(m[7])
else
  -- a log without its meta belongs to a history that nobody can continue
  redis.call('DEL', log)
  seq, prev, before, first, cut, oldest, expiry = 1, '0', 0, 1, 0, now, 0
end
local id = string.format('%d-%s', seq, tag)
local total = before + #body + #key + 64

redis.call('XADD', log, id, 'h', prev .. ' ' .. ts .. ' ' .. ARGV[7] .. ' ' .. before, 'k', key, 'm', body)
if first == seq then
  oldest = now
  redis.call('HSET', meta, 's', seq, 't', tag, 'b', total, key, id, 'f', first, 'h', before, 'a', now)
  cut = before
else
  redis.call('HSET', meta, 's', seq, 't', tag, 'b', total, key, id)
end

-- Lifetimes are set every sixteenth of the age, and so much longer, so that they are never too short.
if now - expiry > max_age / 16 then
  redis.call('HSET', meta, 'x', now)
  redis.call('PEXPIRE', meta, math.floor(max_age * 1.125))
  redis.call('PEXPIRE', log, math.floor(max_age * 1.125))
end

redis.call(redis.REDIS_VERSION_NUM and ARGV[2] or 'PUBLISH', ARGV[1],
  seq .. ' ' .. tag .. ' ' .. prev .. ' ' .. ts .. ' ' .. ARGV[7] .. ' ' .. body)

-- Trimming is done for many messages at once: 32 by count, an eighth by bytes, a thirty-second by age.
local max_count, max_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
if seq - first + 1 >= max_count + 32 or total - cut > max_bytes
    or now - oldest > max_age + math.max(1000, max_age / 32) then
  local keep_bytes = max_bytes * 7 / 8
  local start, kept = '-', false
  while not kept do
    local keys = {}
    local page = redis.call('XRANGE', log, start, '+', 'COUNT', 64)
    for _, entry in ipairs(page) do
      local entry_seq = tonumber(string.match(entry[1], '^%d+'))
      local seconds, ms, entry_before = string.match(entry[2][2], '^%d+ (%d+)%.(%d+) %S+ (%d+)$')
      local stored = seconds * 1000 + ms
      if entry_seq == seq or (seq - entry_seq < max_count and total - entry_before <= keep_bytes
          and now - stored <= max_age) then
        kept = true
        first, cut, oldest = entry_seq, entry_before, stored
        break
      end
      keys[#keys + 1] = entry[2][4]
      start = '(' .. entry[1]
    end
    if #keys > 0 then
      redis.call('HDEL', meta, unpack(keys))
    end
    if #page == 0 then
      break
    end
  end
  if kept then
    -- by count, which is known: 6.2's MINID takes the entry it names along now and then
    redis.call('XTRIM', log, 'MAXLEN', seq - first + 1)
    redis.call('HSET', meta, 'f', first, 'h', cut, 'a', oldest)
  end
end

return {seq, tag, 0}
