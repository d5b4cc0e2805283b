-- What the fleet knows of breakers: who opened, whose turn it is to probe, who closed.
--
-- KEYS: 1 the breakers, by target. ARGV: 1 the worker, 2 for how long a turn is its own (ms), 3 how
--   long what is over is told (ms); then for each report the target, `open`, `due`, `probing` or
--   `closed`, for how much longer it is open (ms), and how many trips in a row that makes.
-- Returns target, `open` or `closed`, for how much longer (ms), trips, 1 if the probe is the asker's.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = {}
local told = redis.call('HGETALL', KEYS[1])
for at = 1, #told, 2 do
  known[told[at]] = cjson.decode(told[at + 1])
end

local changed = {}
for at = 4, #ARGV, 4 do
  local target, word = ARGV[at], ARGV[at + 1]
  local left, trips = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local one = known[target]
  if word == 'closed' then
    one = {state = 'closed', till = now, trips = 0, owner = '', lease = 0}
  elseif word == 'open' then
    local till = now + left
    if one and one.state == 'open' then
      till = math.max(till, one.till)
    end
    one = {state = 'open', till = till, trips = trips, owner = '', lease = 0}
  elseif not one then
    one = {state = 'open', till = now + left, trips = trips, owner = '', lease = 0}
  end
  local lease, mine = tonumber(ARGV[2]), one.owner == ARGV[1]
  local free = one.lease <= now and (not mine or one.lease + lease <= now) -- others first
  if one.state == 'open' and ((word == 'due' and free) or (word == 'probing' and (mine or free))) then
    one.owner, one.lease = ARGV[1], now + lease
  end
  known[target] = one
  changed[target] = true
end

local answer = {}
for target, one in pairs(known) do
  if math.max(one.till, one.lease) + tonumber(ARGV[3]) < now then
    redis.call('HDEL', KEYS[1], target)
  else
    if changed[target] then
      redis.call('HSET', KEYS[1], target, cjson.encode(one))
    end
    local mine = (one.owner == ARGV[1] and one.lease > now) and 1 or 0
    table.insert(answer, {target, one.state, one.till - now, one.trips, mine})
  end
end
return answer
