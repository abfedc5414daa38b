-- The changes about permits that the core remembers: granted, ended, each run that was reported.
CREATE TABLE permits (seq INTEGER PRIMARY KEY, permit TEXT NOT NULL, to_ms INTEGER NOT NULL);
CREATE INDEX permits_permit ON permits (permit);
