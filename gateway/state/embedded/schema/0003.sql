-- The audit log: append-only, each line with the hash of the line before. `at` in milliseconds.
CREATE TABLE IF NOT EXISTS audit (
  seq INTEGER PRIMARY KEY,
  at INTEGER NOT NULL,
  who TEXT NOT NULL,
  verb TEXT NOT NULL,
  object TEXT NOT NULL,
  result TEXT NOT NULL,
  config TEXT NOT NULL,
  before TEXT NOT NULL,
  hash TEXT NOT NULL
);

-- `anchor`: the last line that was removed for its age. `head`: the last that was written.
CREATE TABLE IF NOT EXISTS audit_seal (
  name TEXT PRIMARY KEY,
  seq INTEGER NOT NULL,
  hash TEXT NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO audit_seal VALUES
  ('anchor', 0, '0000000000000000000000000000000000000000000000000000000000000000'),
  ('head', 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'a line of the audit log is never changed'); END;
CREATE TRIGGER IF NOT EXISTS audit_ages BEFORE DELETE ON audit
WHEN old.seq > (SELECT seq FROM audit_seal WHERE name = 'anchor')
BEGIN SELECT RAISE(ABORT, 'a line of the audit log leaves by its age alone'); END;
