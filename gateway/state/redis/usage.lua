-- What a key has spent. KEYS: the sums of days, oldest first. ARGV: the fields to read of each.
-- Returns for each day that has any: its place among KEYS from 0, and the figures.
local found = {}
for place, sums in ipairs(KEYS) do
  local figures = redis.call('HMGET', sums, unpack(ARGV))
  if figures[1] or figures[2] then
    for at = 1, #ARGV do
      figures[at] = figures[at] or '0' -- nil would end the answer
    end
    table.insert(found, {place - 1, unpack(figures)})
  end
end
return found
