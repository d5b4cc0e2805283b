-- What the workers of this machine share of their limits (gateway/state/accounts.py).

-- One row for each account in use: `state` as Tally.dump writes it. `until`: the moment (seconds of
-- the machine's clock) from which it may be forgotten, NULL: while somebody's money is held on it.
CREATE TABLE IF NOT EXISTS account (
  id TEXT PRIMARY KEY,
  state BLOB NOT NULL,
  until REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS account_until ON account (until);

-- Who shares: the last call and when it was. A dead worker's row goes once its journal is applied.
CREATE TABLE IF NOT EXISTS worker (
  id TEXT PRIMARY KEY,
  turn INTEGER NOT NULL,
  beat REAL NOT NULL
) WITHOUT ROWID;

-- The clock all of this is by: it starts anew when the machine does. One row.
CREATE TABLE IF NOT EXISTS machine (
  boot TEXT NOT NULL,
  at REAL NOT NULL
);

-- What was spent of each budget, moved by ledger lines in the transaction that books them.
CREATE TABLE IF NOT EXISTS budget (
  account TEXT PRIMARY KEY,
  nano_usd INTEGER NOT NULL
) WITHOUT ROWID;
