-- Takes from the bucket of everything that makes this cluster's clients reconnect.
-- KEYS[1]  the bucket, a hash: what is left, and when that was (ms, Redis's clock)
-- ARGV[1]  how many flow in a second
-- ARGV[2]  the most it holds
-- ARGV[3]  how many are wanted
-- Returns  how many may reconnect now, 0 to ARGV[3]
local rate, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'left', 'at')
local left = tonumber(bucket[1]) or most
-- a clock that was set back gives nothing and takes nothing
local passed = math.max(0, now - (tonumber(bucket[2]) or now))
left = math.min(most, left + passed * rate / 1000)
local taken = math.min(wanted, math.floor(left))
redis.call('HSET', KEYS[1], 'left', string.format('%.6f', left - taken), 'at', string.format('%.0f', now))
-- one that is full again is as good as none
redis.call('PEXPIRE', KEYS[1], math.ceil(most / rate * 1000) + 1000)
return taken
