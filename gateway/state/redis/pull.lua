-- KEYS: 1 the caller keys (name, record), 2 their mark. ARGV: 1 the mark the asker has seen.
-- Returns the mark, and all names and records if it is another one.
local mark = redis.call('GET', KEYS[2]) or ''
if mark == ARGV[1] then
  return {mark}
end
return {mark, redis.call('HGETALL', KEYS[1])}
