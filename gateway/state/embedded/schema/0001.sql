-- The first tables of the embedded store. A later number changes them; this file never changes.

-- How far each worker's journal has been applied. `closed`: all of it, and what was lost as well.
CREATE TABLE IF NOT EXISTS cursor (
  worker TEXT PRIMARY KEY,
  seq INTEGER NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- One row for each finished upstream call, kept 30 days. Money in nano-dollars, NULL: unpriced.
-- `at` epoch seconds, `day` days since 1970-01-01 (UTC), times in milliseconds.
CREATE TABLE IF NOT EXISTS ledger (
  attempt_id TEXT PRIMARY KEY,
  request_id TEXT NOT NULL,
  at REAL NOT NULL,
  day INTEGER NOT NULL,
  key TEXT NOT NULL,
  team TEXT,
  user TEXT,
  session TEXT,
  tags TEXT NOT NULL,
  chain TEXT NOT NULL,
  target TEXT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  kind TEXT NOT NULL,
  input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  cached INTEGER NOT NULL,
  cache_write_5m INTEGER NOT NULL,
  cache_write_1h INTEGER NOT NULL,
  reasoning INTEGER NOT NULL,
  audio_input INTEGER NOT NULL,
  audio_output INTEGER NOT NULL,
  nano_usd INTEGER,
  price_id TEXT,
  flags TEXT NOT NULL,
  outcome TEXT NOT NULL,
  status INTEGER,
  upstream_ms INTEGER NOT NULL,
  first_content_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_day ON ledger (day);

-- Sums of the ledger by scope (key, team, user) and day, kept 400 days. A user is `key/user`.
CREATE TABLE IF NOT EXISTS spent (
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  day INTEGER NOT NULL,
  requests INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  nano_usd INTEGER NOT NULL,
  unknown INTEGER NOT NULL,
  PRIMARY KEY (scope, name, day)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spent_day ON spent (day);

-- Caller keys made by `gateway keys create`: digests only. Lists as JSON.
CREATE TABLE IF NOT EXISTS key (
  name TEXT PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  digest BLOB NOT NULL,
  previous BLOB,
  previous_until REAL,
  tier TEXT,
  team TEXT,
  chains TEXT,
  limits TEXT NOT NULL,
  role TEXT NOT NULL,
  expires REAL,
  created REAL NOT NULL,
  revoked REAL
) WITHOUT ROWID;

-- `key` counts every change of that table, so that a running gateway sees it; `lines` is the first
-- day of which the ledger has all lines.
CREATE TABLE IF NOT EXISTS version (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO version VALUES ('key', 0), ('lines', 0);

-- One story a request, kept 24 h: never a prompt or completion.
CREATE TABLE IF NOT EXISTS request (
  id TEXT PRIMARY KEY,
  at REAL NOT NULL,
  story BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS request_at ON request (at);
