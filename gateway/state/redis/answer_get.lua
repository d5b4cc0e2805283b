-- What was kept in the last so many ms. KEYS: the answer. ARGV: ms.
local at = redis.call('HGET', KEYS[1], 'at')
if not at then return {} end
local time = redis.call('TIME')
if tonumber(at) < time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1] then return {} end
return redis.call('HMGET', KEYS[1], 'status', 'body', 'target', 'model', 'cost', 'reason')
