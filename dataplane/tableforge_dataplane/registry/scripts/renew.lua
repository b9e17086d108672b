-- Renews an instance's lease, or takes it.
-- KEYS[1]  the lease
-- ARGV[1]  boot id of the caller
-- ARGV[2]  lifetime of the lease, milliseconds
-- ARGV[3]  "1" where the caller has never held it: then it takes it from whoever does (the newest process wins)
-- Returns  {"renewed" | "created" | "taken" | "superseded", boot id of the former or other holder or ""}
--
-- PEXPIRE works at `maxmemory`, where SET is refused: a lease that exists lives on without memory.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'renewed', holder}
end
if holder and ARGV[3] ~= '1' then
  return {'superseded', holder}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if holder then
  return {'taken', holder}
end
return {'created', ''}
