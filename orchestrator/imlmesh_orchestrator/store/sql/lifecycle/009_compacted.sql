-- Changes of runs that ended long ago: rows of `changes`, packed, that no longer stand there. One row is
-- some changes of one run in their order; `first_seq` and `last_seq` are the seqs of its first and last.
CREATE TABLE compacted (
    first_seq INTEGER PRIMARY KEY,
    last_seq INTEGER NOT NULL,
    run TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX compacted_of_run ON compacted (run);
CREATE INDEX compacted_to ON compacted (last_seq);
