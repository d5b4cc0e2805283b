-- End the call under way if it is detached; what was found. KEYS: the answer. ARGV: memory in ms.
local row = redis.call('HMGET', KEYS[1], 'fingerprint', 'token', 'detached', 'ended')
if not row[1] then return '' end
if row[4] then return 'ended' end
if not row[2] then return 'kept' end
if row[3] ~= '1' then return 'running' end
redis.call('HSET', KEYS[1], 'ended', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'ended'
