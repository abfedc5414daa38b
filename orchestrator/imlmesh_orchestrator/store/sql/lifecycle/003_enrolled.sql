-- Who was let in, and the certificates that have not ended; `seq` is the change that says it.
CREATE TABLE enrolled (
    node TEXT PRIMARY KEY, alias TEXT NOT NULL, profile TEXT NOT NULL, seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, node TEXT NOT NULL, not_after_ms INTEGER NOT NULL, seq INTEGER NOT NULL
) WITHOUT ROWID;
