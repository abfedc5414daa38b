-- The last seal that each node named in a heartbeat, as the ledger key signed it.
CREATE TABLE witnessed (
    node TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, seal BLOB NOT NULL
) WITHOUT ROWID;
