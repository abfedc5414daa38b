-- Nodes that are not open. `since_ms` is when the node became that, `seq` its latest change: for
-- another reason, or longer. `until_ms` 0 is until somebody changes it.
CREATE TABLE admissions (
    node TEXT PRIMARY KEY,
    admission TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

-- What nodes signed and what speaks against them, and what it led to.
CREATE TABLE evidence (
    seq INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    verdict TEXT NOT NULL
);
CREATE INDEX evidence_of_node ON evidence (node);
