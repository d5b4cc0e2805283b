-- What was spent of budgets is at least what somebody has seen: a Redis that forgot is told.
--
-- KEYS: 1 what was spent of each budget.
-- ARGV: for each budget its id and the highest figure seen.
for at = 1, #ARGV, 2 do
  if tonumber(redis.call('HGET', KEYS[1], ARGV[at]) or 0) < tonumber(ARGV[at + 1]) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
return #ARGV / 2
