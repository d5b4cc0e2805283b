-- KEYS: 1 the caller keys (name, record), 2 their mark.
-- ARGV: 1 the mark the change was made upon, 2 the mark from now on; then names and records.
-- Returns 1, or 0 where somebody else was quicker and nothing was changed.
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then
  return 0
end
for at = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
