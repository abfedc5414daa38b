-- Every result that any dispatch ever had; `late` ones did not count. `body` as in lifecycle.
CREATE TABLE results (
    id TEXT PRIMARY KEY,
    run TEXT,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX results_of_run ON results (run);

CREATE TABLE heartbeats (
    node TEXT NOT NULL, at_ms INTEGER NOT NULL, beat INTEGER NOT NULL, health BLOB NOT NULL,
    PRIMARY KEY (node, at_ms, beat)
) WITHOUT ROWID;
