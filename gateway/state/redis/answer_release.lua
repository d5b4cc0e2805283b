-- There is no answer: the key is free, if its call is still ours. KEYS: the answer. ARGV: token.
local row = redis.call('HMGET', KEYS[1], 'token', 'ended')
if row[1] == ARGV[1] and not row[2] then return redis.call('DEL', KEYS[1]) end
return 0
