-- Keep an answer, if it is nobody's (token '') or its call is still ours; then trim.
-- KEYS: the answer; then an index (by end of life) and the sizes of its account, and of all. In
-- the indexes stand keys of the same hash tag, so they are on this node.
-- ARGV: token, life in ms, most answers and bytes of an account, most bytes of all; then status,
-- body, target, model, cost, reason.
if ARGV[1] ~= '' then
  local row = redis.call('HMGET', KEYS[1], 'token', 'ended')
  if row[1] ~= ARGV[1] or row[2] then return 0 end
  redis.call('HDEL', KEYS[1], 'token', 'detached')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'at', now, 'status', ARGV[6], 'body', ARGV[7], 'target', ARGV[8],
  'model', ARGV[9], 'cost', ARGV[10], 'reason', ARGV[11])
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local function forget(index, sizes, name)
  local size = redis.call('HGET', sizes, name)
  if size then
    redis.call('HDEL', sizes, name)
    redis.call('HINCRBY', sizes, '', -size)
  end
  redis.call('ZREM', index, name)
end

-- What one index throws out stays in the other until its time is over, and counts there.
local function within(index, sizes, most, most_bytes)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 100)) do
    forget(index, sizes, name)
  end
  forget(index, sizes, KEYS[1])
  redis.call('ZADD', index, now + ARGV[2], KEYS[1])
  redis.call('HSET', sizes, KEYS[1], #ARGV[7])
  local size = redis.call('HINCRBY', sizes, '', #ARGV[7])
  local n = redis.call('ZCARD', index)
  while n > 1 and (n > most or size > most_bytes) do
    local name = redis.call('ZRANGE', index, 0, 0)[1]
    if name == KEYS[1] then name = redis.call('ZRANGE', index, 1, 1)[1] end
    forget(index, sizes, name)
    if redis.call('HEXISTS', name, 'token') == 0 then redis.call('DEL', name) end
    n = n - 1
    size = tonumber(redis.call('HGET', sizes, ''))
  end
  local life = math.max(redis.call('PTTL', index), tonumber(ARGV[2])) + 1000
  redis.call('PEXPIRE', index, life)
  redis.call('PEXPIRE', sizes, life)
end

within(KEYS[2], KEYS[3], tonumber(ARGV[3]), tonumber(ARGV[4]))
within(KEYS[4], KEYS[5], math.huge, tonumber(ARGV[5]))
return 1
