-- Applies lines of a worker once: only if its cursor stands where the worker believes it does.
--
-- KEYS: 1 the worker's cursor, 2 how many rows each day has, 3 what was spent of each budget,
--   4 what was charged for workers that seemed gone; then
--   for each day its sums, its rows.
-- ARGV: 1 base, the seq the worker believes in; 2 last, the seq after this; 3 "1": the journal is
--   complete; 4 seconds the cursor is kept; 5 how many budgets are charged, and for each its id, the
--   least that was spent of it before (as somebody saw it) and the amount to add; the worker; then for each day: its number, when its sums and when
--   its rows may go (epoch seconds), the rows (one text), how many rows, how many sums, and for each
--   sum its field and the amount to add.
-- Returns the cursor, and for how many seconds its journal has been complete (-1: it is not);
--   then what is spent of each of these budgets now, whoever applied the lines.
local cursor = redis.call('HMGET', KEYS[1], 'seq', 'closed')
local seq, closed = cursor[1] or '0', cursor[2]
if closed then
  return {seq, redis.call('TIME')[1] - closed}
end
local at, spent = 6, {}
if seq ~= ARGV[1] then
  for place = 1, tonumber(ARGV[5]) do
    spent[place] = tonumber(redis.call('HGET', KEYS[3], ARGV[at]) or 0)
    at = at + 3
  end
  return {seq, -1, spent}
end

redis.call('HSET', KEYS[1], 'seq', ARGV[2])
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'closed', redis.call('TIME')[1])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])

for place = 1, tonumber(ARGV[5]) do
  if tonumber(redis.call('HGET', KEYS[3], ARGV[at]) or 0) < tonumber(ARGV[at + 1]) then
    redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1]) -- forgotten since
  end
  local field, add = ARGV[6 + 3 * ARGV[5]] .. ' ' .. ARGV[at], tonumber(ARGV[at + 2])
  local estimated = math.min(add, tonumber(redis.call('HGET', KEYS[4], field) or 0))
  if estimated > 0 and redis.call('HINCRBY', KEYS[4], field, -estimated) == 0 then
    redis.call('HDEL', KEYS[4], field)
  end
  spent[place] = redis.call('HINCRBY', KEYS[3], ARGV[at], add - estimated)
  at = at + 3
end
at = at + 1
for place = 5, #KEYS, 2 do
  local sums, rows = KEYS[place], KEYS[place + 1]
  local day, sums_end, rows_end, text, count, more =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], tonumber(ARGV[at + 5])
  redis.call('RPUSH', rows, text)
  redis.call('EXPIREAT', rows, rows_end)
  redis.call('HINCRBY', KEYS[2], day, count)
  at = at + 6
  for _ = 1, more do
    redis.pcall('HINCRBY', sums, ARGV[at], ARGV[at + 1]) -- beyond 64 bits: the rows still tell
    at = at + 2
  end
  redis.call('EXPIREAT', sums, sums_end)
end
return {ARGV[2], ARGV[3] - 1, spent}
