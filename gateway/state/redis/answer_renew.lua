-- Renew the leases of calls under way; the tokens of those that their callers have ended.
-- KEYS: their answers. ARGV: lease in ms (0: look only), then a token for each.
local ended = {}
for at, name in ipairs(KEYS) do
  local row = redis.call('HMGET', name, 'token', 'ended')
  if row[1] == ARGV[at + 1] then
    if row[2] then
      ended[#ended + 1] = row[1]
    elseif ARGV[1] ~= '0' then
      redis.call('PEXPIRE', name, ARGV[1])
    end
  end
end
return ended
