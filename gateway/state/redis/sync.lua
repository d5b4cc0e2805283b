-- One call of a worker on the accounts it shares: the rules of gateway/state/accounts.py, word for
-- word, on Redis's own clock. Times are whole microseconds. An account is one packed value.
--
-- KEYS: workers (sorted set, score: last heard), turns (hash), budgets (hash, nano-dollars spent),
--   estimates (hash, what was charged for a worker that is gone, until its lines come), then the
--   account of each ask.
-- ARGV[1], JSON: {worker, turn, heard, asks, groups, rules}
--   ask: {kind, limit, burst or -1, floor, used, back, bound, want, {{before, after}, ...},
--     spent, at least, as the worker saw it}
--   group: {{place from 0, n}, ...}
-- Returns {now, known, workers, rank, {granted, rest, whole, spent, ...}, {verdict, ...}}
--   verdict: {1, before, after, ...} admitted, what each meter was charged
--            {0, place, wait or -1, sure} refused
-- or nothing: a later call was already carried out.

local call = cjson.decode(ARGV[1])
local worker, turn, heard, asks, groups, rules = unpack(call)
local SECOND = 1000000
local WINDOW, SILENT, IDLE = rules.window, rules.silent * SECOND, rules.idle * SECOND
local GONE = rules.gone * SECOND
local MINUTE, NEVER, FORGOTTEN = 60 * SECOND, rules.never * SECOND, 86400 * SECOND

local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]

if turn <= tonumber(redis.call('HGET', KEYS[2], worker) or 0) then
  return false
end

-- Who lives. A clock that was set back makes everybody heard of just now.
local beats, alive, names = {}, {}, {}
local scores = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
-- Where nobody was heard, it was Redis that was away: whoever is dead is so from now on.
local unheard = #scores > 0 and now - tonumber(scores[#scores]) > SILENT
for i = 1, #scores, 2 do
  local name, at = scores[i], tonumber(scores[i + 1])
  if at > now + SECOND then
    at = now
    redis.call('ZADD', KEYS[1], at, name)
  end
  if unheard and now - at <= FORGOTTEN then
    at = now - SILENT - 1
    redis.call('ZADD', KEYS[1], at, name)
  end
  if now - at > FORGOTTEN then
    redis.call('ZREM', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
  else
    beats[name] = at
    alive[name] = now - at <= SILENT or nil
  end
end
local known = beats[worker] and 1 or 0
alive[worker] = true
redis.call('ZADD', KEYS[1], now, worker)
redis.call('HSET', KEYS[2], worker, turn)
for name in pairs(alive) do
  names[#names + 1] = name
end
table.sort(names)
local rank = 0
for place, name in ipairs(names) do
  if name == worker then rank = place - 1 end
end

-- What was settled: buckets of one second {second, n, second, n, ...}, oldest first.

local function leaves(second)
  return (second + WINDOW + 1) * SECOND
end

local function age(tally)
  local buckets, first = tally.buckets, 1
  while buckets[first] and leaves(buckets[first]) <= now do
    tally.settled = tally.settled - buckets[first + 1]
    first = first + 2
  end
  if first > 1 then
    tally.buckets = {unpack(buckets, first)}
  end
end

local function add(tally, n)
  if n <= 0 then return end
  tally.settled = tally.settled + n
  local buckets, second = tally.buckets, math.floor(now / SECOND)
  local size = #buckets
  if size > 0 and buckets[size - 1] >= second then
    buckets[size] = buckets[size] + n
  else
    buckets[size + 1], buckets[size + 2] = second, n
  end
end

local function take_back(tally, n)
  local buckets, first = tally.buckets, 1
  while n > 0 and buckets[first] do
    local part = math.min(n, buckets[first + 1])
    buckets[first + 1] = buckets[first + 1] - part
    tally.settled = tally.settled - part
    n = n - part
    if buckets[first + 1] == 0 then first = first + 2 end
  end
  if first > 1 then
    tally.buckets = {unpack(buckets, first)}
  end
end

local function whole(tally)
  local size = #tally.buckets
  if size == 0 then return 0 end
  return math.max(0, leaves(tally.buckets[size - 1]) - now) + 1
end

local function until_left(tally, n)
  local buckets = tally.buckets
  for i = 1, #buckets, 2 do
    n = n - buckets[i + 1]
    if n <= 0 then
      return math.max(0, leaves(buckets[i]) - now) + 1
    end
  end
  return whole(tally)
end

-- Meters.

local function tau(account)
  return math.ceil(MINUTE / account.limit)
end

local function meter_wait(tally, account, n)
  if account.limit <= 0 then return NEVER end
  local burst = math.max(1, account.burst)
  local backlog = math.max(tally.tat - now, 0)
  local lacking = backlog - (burst - math.min(n, burst)) * tau(account)
  return lacking > 0 and lacking + 1 or 0
end

local function meter_take(tally, account, n)
  if meter_wait(tally, account, n) > 0 then return nil end
  local before = tally.tat
  n = math.min(n, math.max(1, account.burst))
  tally.tat = math.max(before, now) + n * tau(account)
  return before, tally.tat
end

-- Accounts.

local function load(key)
  local found = redis.call('GET', key)
  if not found then
    return {settled = 0, buckets = {}, tat = 0, held = {}, used = {}, back = {}, touched = now}
  end
  local tally = cmsgpack.unpack(found)
  if tally.touched > now + SECOND then -- the clock was set back: it counts for another window
    local settled = tally.settled
    tally.settled, tally.buckets = 0, {}
    add(tally, settled)
    tally.tat = tally.tat - math.min(tally.tat, tally.touched - now)
  end
  return tally
end

-- Its disk is gone with it, or it cannot reach us: the hold counts, and its lines only beyond that.
local function estimate(tally, budget, name)
  local held = tally.held[name] or 0
  if held == 0 then return end
  redis.call('HINCRBY', KEYS[3], budget, held)
  redis.call('HINCRBY', KEYS[4], name .. ' ' .. budget, held)
  redis.call('EXPIRE', KEYS[4], rules.kept)
  tally.spent, tally.held[name] = tally.spent + held, nil
end

local function bury(tally, kind, account)
  local gone = {}
  for name in pairs(tally.held) do gone[name] = not alive[name] or nil end
  for name in pairs(tally.used) do gone[name] = not alive[name] or nil end
  for name in pairs(gone) do
    if kind == 'budget' and beats[name] and now - beats[name] > GONE then
      estimate(tally, account, name)
    elseif kind ~= 'budget' or not beats[name] then
      local held = tally.held[name] or 0
      tally.held[name], tally.used[name], tally.back[name] = nil, nil, nil
      if kind == 'rpm' or kind == 'tpm' then add(tally, held) end
    end
  end
end

local function hear(tally, account, ask)
  for _, drop in ipairs(ask[9]) do
    if tally.tat == drop[2] then tally.tat = drop[1] end
  end
  if account.kind == 'rpm' or account.kind == 'tpm' then
    local used, back = tally.used[worker] or -1, tally.back[worker] or 0
    if used <= account.floor then used, back = account.floor, account.back end
    if now - heard <= SILENT then take_back(tally, account.back - back) end
    add(tally, account.used - used)
    tally.used[worker], tally.back[worker] = account.used, account.back
  end
  local others = 0
  for name, held in pairs(tally.held) do
    if name ~= worker then others = others + held end
  end
  return account.limit - tally.settled - tally.spent - others - account.bound
end

local accounts, tallies, rooms, taken = {}, {}, {}, {}
for place, ask in ipairs(asks) do
  local account = {
    kind = ask[1], limit = ask[2], burst = ask[3], floor = ask[4], used = ask[5], back = ask[6],
    bound = ask[7], want = ask[8],
  }
  local tally = load(KEYS[4 + place])
  tally.spent = 0
  if account.kind == 'budget' then
    tally.spent = tonumber(redis.call('HGET', KEYS[3], rules.names[place]) or 0)
    if tally.spent < ask[10] then -- forgotten since
      tally.spent = ask[10]
      redis.call('HSET', KEYS[3], rules.names[place], ask[10])
    end
  end
  age(tally)
  bury(tally, account.kind, rules.names[place])
  accounts[place], tallies[place], taken[place] = account, tally, 0
  rooms[place] = hear(tally, account, ask)
  tally.touched = now
end

-- Groups, in order.

local function full(place, n)
  local account, tally, room = accounts[place], tallies[place], rooms[place]
  if account.limit <= 0 then return {0, place - 1, NEVER, 1} end
  if account.burst >= 0 then return {0, place - 1, meter_wait(tally, account, n), 1} end
  if account.kind == 'budget' then
    return {0, place - 1, -1, tally.spent + n > account.limit and 1 or 0}
  end
  if n - room <= tally.settled then
    local sure = tally.settled + n > account.limit and 1 or 0
    return {0, place - 1, until_left(tally, n - room), sure}
  end
  if account.kind == 'rpm' then
    return {0, place - 1, leaves(math.floor(now / SECOND)) - now, 0}
  end
  return {0, place - 1, -1, 0}
end

local function judge(group)
  local verdict, metered = {1}, {}
  for _, need in ipairs(group) do
    local place, n = need[1] + 1, need[2]
    local account, tally = accounts[place], tallies[place]
    local fits = n <= rooms[place] and account.limit > 0
    if account.burst >= 0 then
      local before, after = meter_take(tally, account, n)
      fits = before ~= nil
      if fits then
        verdict[#verdict + 1], verdict[#verdict + 2] = before, after
        metered[#metered + 1] = {tally, before}
      end
    end
    if not fits then
      for i = #metered, 1, -1 do metered[i][1].tat = metered[i][2] end
      return full(place, n)
    end
  end
  for _, need in ipairs(group) do
    local place, n = need[1] + 1, need[2]
    if accounts[place].burst < 0 then
      rooms[place], taken[place] = rooms[place] - n, taken[place] + n
    end
  end
  return verdict
end

local verdicts = {}
for i, group in ipairs(groups) do
  verdicts[i] = judge(group)
end

-- What is left over, in reserve; and all is written back.

local slices = {}
for place, account in ipairs(accounts) do
  local tally, room, granted = tallies[place], rooms[place], 0
  local rest, healed = room, 0
  if account.burst >= 0 then
    local backlog = math.max(tally.tat - now, 0)
    rest, healed = 0, NEVER
    if account.limit > 0 then
      rest = math.max(0, math.max(1, account.burst) - math.ceil(backlog / tau(account)))
      healed = backlog
    end
  else
    local most = room
    if account.kind == 'budget' then
      most = room - math.ceil(account.limit * (1 - rules.sparse))
    end
    local slack = math.max(0, math.min(account.want, most))
    granted = account.bound + taken[place] + slack
    rest, healed = room - slack, whole(tally)
  end
  tally.held[worker] = granted > 0 and granted or nil
  slices[#slices + 1], slices[#slices + 2], slices[#slices + 3] = granted, rest, healed
  slices[#slices + 1] = tally.spent
  tally.spent = nil
  local life = math.max(IDLE, tally.tat - now)
  if account.kind == 'budget' and next(tally.held) then life = 400 * FORGOTTEN end
  redis.call('SET', KEYS[4 + place], cmsgpack.pack(tally), 'PX', math.ceil(life / 1000))
end

return {now, known, #names, rank, slices, verdicts}
