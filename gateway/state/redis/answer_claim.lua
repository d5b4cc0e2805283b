-- A caller's key: ours from now on (0), or what stands there.
-- KEYS: the answer. ARGV: fingerprint, token, detached (0 or 1), lease in ms.
local row = redis.call('HMGET', KEYS[1], 'fingerprint', 'ended', 'status', 'body', 'target', 'model', 'cost', 'reason')
if not row[1] then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'token', ARGV[2], 'detached', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {'ours'}
end
if row[1] ~= ARGV[1] then return {'other'} end
if row[2] then return {'ended'} end
if not row[3] then return {'running'} end
return {'kept', row[3], row[4], row[5], row[6], row[7], row[8] or ''}
