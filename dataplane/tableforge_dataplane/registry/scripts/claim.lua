-- Claims the key prefix for a cluster, or keeps the claim.
-- KEYS[1]  the claim
-- ARGV[1]  the cluster's name
-- ARGV[2]  lifetime of the claim, milliseconds
-- Returns  the name of the cluster that holds the prefix: ARGV[1], or another that lives
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return holder
end
if holder then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
