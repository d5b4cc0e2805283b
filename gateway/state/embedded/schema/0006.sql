-- Requests that wait for room, and for a day what they were answered. Times in epoch seconds.

-- `account` and `username` are whose it is. `token` names the worker's lease, which ends at `lease`;
-- `lost` counts leases that ran out. `until` is the deadline, or the end of what is kept; `status`
-- NULL: not answered yet. `body` is the request's, then the answer's.
CREATE TABLE IF NOT EXISTS parked (
  id TEXT PRIMARY KEY,
  account TEXT NOT NULL,
  username TEXT NOT NULL,
  lane TEXT NOT NULL,
  tier TEXT NOT NULL,
  until REAL NOT NULL,
  token TEXT,
  lease REAL,
  lost INTEGER NOT NULL DEFAULT 0,
  status INTEGER,
  headers BLOB,
  envelope BLOB NOT NULL,
  body BLOB NOT NULL,
  size INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS parked_lane ON parked (lane, until)
  WHERE status IS NULL AND token IS NULL;
CREATE INDEX IF NOT EXISTS parked_waiting ON parked (until) WHERE status IS NULL AND token IS NULL;
CREATE INDEX IF NOT EXISTS parked_lease ON parked (lease) WHERE token IS NOT NULL;
CREATE INDEX IF NOT EXISTS parked_done ON parked (until) WHERE status IS NOT NULL;

-- What waits or runs by lane, and '' what was answered: counted here, so that no bound costs a scan.
-- `due`: before that there is no room for this lane.
CREATE TABLE IF NOT EXISTS lane (
  name TEXT PRIMARY KEY,
  tier TEXT NOT NULL,
  due REAL NOT NULL,
  n INTEGER NOT NULL,
  size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lane_tier ON lane (tier);
CREATE TRIGGER IF NOT EXISTS parked_came AFTER INSERT ON parked BEGIN
  INSERT INTO lane VALUES (new.lane, new.tier, 0, 1, new.size)
  ON CONFLICT (name) DO UPDATE SET n = n + 1, size = size + new.size, tier = new.tier;
END;
CREATE TRIGGER IF NOT EXISTS parked_answered AFTER UPDATE OF status ON parked
WHEN old.status IS NULL AND new.status IS NOT NULL BEGIN
  UPDATE lane SET n = n - 1, size = size - old.size WHERE name = old.lane;
  DELETE FROM lane WHERE name = old.lane AND n = 0;
  INSERT INTO lane VALUES ('', '', 0, 1, new.size)
  ON CONFLICT (name) DO UPDATE SET n = n + 1, size = size + new.size;
END;
CREATE TRIGGER IF NOT EXISTS parked_went AFTER DELETE ON parked BEGIN
  UPDATE lane SET n = n - 1, size = size - old.size
  WHERE name = CASE WHEN old.status IS NULL THEN old.lane ELSE '' END;
  DELETE FROM lane WHERE n = 0;
END;
