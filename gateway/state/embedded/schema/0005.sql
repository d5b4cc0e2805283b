-- Whom an alert was about, once for each user (`key/user`) and day: the next worker keeps silent.
CREATE TABLE IF NOT EXISTS alert (
  name TEXT NOT NULL,
  day INTEGER NOT NULL,
  PRIMARY KEY (name, day)
) WITHOUT ROWID;
