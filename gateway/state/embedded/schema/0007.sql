-- A key's own budgets: rows of period, nano-dollars, hard.
ALTER TABLE key ADD COLUMN budgets TEXT NOT NULL DEFAULT '[]';
