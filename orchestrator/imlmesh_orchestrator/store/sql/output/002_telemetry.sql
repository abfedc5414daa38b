-- What nodes measure. `metric` is `<who measured>.<what>`; `health.` comes from heartbeats.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    metric TEXT NOT NULL,
    unit TEXT NOT NULL,
    UNIQUE (node, metric)
);

-- In the order of time, not of series: what is new goes to the end and what is old leaves from the
-- front, so that a write touches few pages however many series there are. A series has one reading a
-- millisecond.
CREATE TABLE readings (
    at_ms INTEGER NOT NULL, series INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (at_ms, series)
) WITHOUT ROWID;

-- Roll-ups; `at_ms` is where the minute or hour begins, the mean is total / count.
CREATE TABLE minutes (
    at_ms INTEGER NOT NULL,
    series INTEGER NOT NULL,
    count INTEGER NOT NULL,
    low REAL NOT NULL,
    high REAL NOT NULL,
    total REAL NOT NULL,
    last_ms INTEGER NOT NULL,
    last REAL NOT NULL,
    PRIMARY KEY (at_ms, series)
) WITHOUT ROWID;

CREATE TABLE hours (
    at_ms INTEGER NOT NULL,
    series INTEGER NOT NULL,
    count INTEGER NOT NULL,
    low REAL NOT NULL,
    high REAL NOT NULL,
    total REAL NOT NULL,
    last_ms INTEGER NOT NULL,
    last REAL NOT NULL,
    PRIMARY KEY (at_ms, series)
) WITHOUT ROWID;

-- Up to where each of the two is made; what comes later for an earlier time is merged in.
CREATE TABLE rolled (tier TEXT PRIMARY KEY, to_ms INTEGER NOT NULL) WITHOUT ROWID;

-- Beats in the order of time too; what a beat says of the node's health is readings now.
ALTER TABLE heartbeats RENAME TO heartbeats_by_node;
CREATE TABLE heartbeats (
    at_ms INTEGER NOT NULL, node TEXT NOT NULL, beat INTEGER NOT NULL,
    PRIMARY KEY (at_ms, node)
) WITHOUT ROWID;
INSERT OR IGNORE INTO heartbeats SELECT at_ms, node, beat FROM heartbeats_by_node;
DROP TABLE heartbeats_by_node;
