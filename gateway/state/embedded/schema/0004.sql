-- Kept answers: of the exact cache, and of callers' own Idempotency-Keys. Times in epoch seconds.

-- `account` and `username` are whose it is; `token` names the call that is under way (NULL: none).
-- `until` is the end of a lease, or of what is kept; `at` when it was kept. NULL status: no answer.
CREATE TABLE IF NOT EXISTS answer (
  id INTEGER PRIMARY KEY,
  account TEXT NOT NULL,
  username TEXT NOT NULL,
  name TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  token TEXT,
  detached INTEGER NOT NULL DEFAULT 0,
  ended INTEGER NOT NULL DEFAULT 0,
  at REAL NOT NULL,
  until REAL NOT NULL,
  status INTEGER,
  target TEXT NOT NULL DEFAULT '',
  model TEXT NOT NULL DEFAULT '',
  cost TEXT NOT NULL DEFAULT '',
  finish_reason TEXT,
  body BLOB NOT NULL DEFAULT x'',
  size INTEGER NOT NULL DEFAULT 0,
  UNIQUE (account, username, name)
);
CREATE INDEX IF NOT EXISTS answer_at ON answer (account, at);
CREATE INDEX IF NOT EXISTS answer_until ON answer (until);
CREATE INDEX IF NOT EXISTS answer_token ON answer (token) WHERE token IS NOT NULL;

-- How much an account has, and '' all of them: counted here, so that no bound costs a scan.
CREATE TABLE IF NOT EXISTS drawer (
  account TEXT PRIMARY KEY,
  n INTEGER NOT NULL,
  size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS answer_came AFTER INSERT ON answer BEGIN
  INSERT INTO drawer VALUES (new.account, 1, new.size), ('', 1, new.size)
  ON CONFLICT (account) DO UPDATE SET n = n + 1, size = size + new.size;
END;
CREATE TRIGGER IF NOT EXISTS answer_changed AFTER UPDATE OF size ON answer BEGIN
  UPDATE drawer SET size = size + new.size - old.size WHERE account IN (new.account, '');
END;
CREATE TRIGGER IF NOT EXISTS answer_went AFTER DELETE ON answer BEGIN
  UPDATE drawer SET n = n - 1, size = size - old.size WHERE account IN (old.account, '');
  DELETE FROM drawer WHERE account = old.account AND n = 0;
END;
