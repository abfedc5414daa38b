-- What lets nodes in: the changes about tokens, about who waits or is ignored, the open door, and
-- names that moved on. `seq` is the change.
CREATE TABLE tokens (seq INTEGER PRIMARY KEY, token TEXT NOT NULL, expires_at_ms INTEGER NOT NULL);
CREATE INDEX tokens_token ON tokens (token);

CREATE TABLE joins (seq INTEGER PRIMARY KEY, identity BLOB NOT NULL, until_ms INTEGER NOT NULL);

CREATE TABLE join_window (one INTEGER PRIMARY KEY, seq INTEGER NOT NULL);

CREATE TABLE grants (node TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE aliases (node TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
