-- Forgets the rows of whole days, the oldest first, and says from which day on all are there.
--
-- KEYS: 1 how many rows each day has; then the rows of each day that goes.
-- ARGV: 1 the first day of which all rows are there from now on; then the number of each day.
for place = 2, #KEYS do
  redis.call('UNLINK', KEYS[place])
  redis.call('HDEL', KEYS[1], ARGV[place])
end
local first = tonumber(redis.call('HGET', KEYS[1], 'first') or '0')
if tonumber(ARGV[1]) > first then
  redis.call('HSET', KEYS[1], 'first', ARGV[1])
end
return redis.call('HLEN', KEYS[1])
