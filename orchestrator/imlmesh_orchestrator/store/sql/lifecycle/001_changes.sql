-- The append-only truth. `body` is a msgpack array: the change's own fields in their order.
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY,
    run TEXT,
    at_ms INTEGER NOT NULL,
    cause TEXT NOT NULL,
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX changes_of_run ON changes (run) WHERE run IS NOT NULL;

-- Everything below is a projection: written with the changes, never read by the core.
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, seq INTEGER NOT NULL, at_ms INTEGER NOT NULL);

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    alias TEXT,
    profile TEXT,
    described_seq INTEGER,
    liveness TEXT,
    reason TEXT,
    since_ms INTEGER,
    liveness_seq INTEGER
) WITHOUT ROWID;

CREATE TABLE labels (
    node TEXT PRIMARY KEY, labels TEXT NOT NULL, seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE groups (
    name TEXT PRIMARY KEY, nodes TEXT NOT NULL, seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE plans (
    digest TEXT PRIMARY KEY, plan_id TEXT NOT NULL, document TEXT NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE runs (
    counter INTEGER PRIMARY KEY,
    run TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    plan_id TEXT NOT NULL,
    description TEXT NOT NULL,
    actions INTEGER NOT NULL,
    asked_by TEXT NOT NULL,
    priority INTEGER NOT NULL,
    starts_at_ms INTEGER NOT NULL,
    -- the ended run that this one retries, and the change that says what it took over
    retry_of TEXT,
    retried_seq INTEGER,
    -- file name and {action: [line, column]} of the text that was submitted, when there was one
    file TEXT,
    places BLOB,
    -- pending also stands for running: a pending run that has dispatches is running
    state TEXT NOT NULL DEFAULT 'pending',
    unconfirmed INTEGER NOT NULL DEFAULT 0,
    compensation_pending INTEGER NOT NULL DEFAULT 0,
    code TEXT,
    message TEXT,
    submitted_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER
);
CREATE INDEX runs_open ON runs (counter) WHERE ended_at_ms IS NULL;

-- One row for each attempt; `action_state` is what its result made of the action, and the result
-- itself is the body of the change `result_seq`. `unit` is the key of what it is an attempt of, where
-- that is not the action of its id.
CREATE TABLE dispatches (
    dispatch TEXT PRIMARY KEY,
    unit TEXT,
    effect TEXT NOT NULL,
    planned_seq INTEGER NOT NULL,
    planned_at_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    action_state TEXT,
    ended_at_ms INTEGER,
    duration_ms INTEGER,
    code TEXT,
    message TEXT,
    result_seq INTEGER
) WITHOUT ROWID;

-- What is known of a unit of work beyond its dispatches: of the two the later seq counts. `action`
-- is its key: an action's id, `ID@NODE` of a member, `ID~NODE` of a compensation. An action that
-- neither table names is pending. `reasons` is msgpack {node: code} while it waits; `retry_at_ms`
-- is when it is tried again.
CREATE TABLE actions (
    run TEXT NOT NULL,
    action TEXT NOT NULL,
    seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    code TEXT,
    message TEXT,
    reasons BLOB,
    retry_at_ms INTEGER,
    PRIMARY KEY (run, action)
) WITHOUT ROWID;

CREATE TABLE approvals (
    counter INTEGER PRIMARY KEY,
    approval TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    run TEXT NOT NULL,
    action TEXT NOT NULL,
    dispatch TEXT NOT NULL,
    message TEXT NOT NULL,
    options TEXT NOT NULL,
    on_expiry TEXT NOT NULL,
    asked_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    risk TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    option TEXT,
    answered_by TEXT,
    closed_at_ms INTEGER
);
CREATE INDEX approvals_pending ON approvals (counter) WHERE state = 'pending';
CREATE INDEX approvals_of_run ON approvals (run);

-- The value is in the body of the change `seq`; the oldest seq was written first.
CREATE TABLE memory (
    session TEXT NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    size INTEGER NOT NULL,
    written_by TEXT NOT NULL,
    PRIMARY KEY (session, key)
) WITHOUT ROWID;

-- The newest only; `seq` is the change that says which run the nonce names.
CREATE TABLE nonces (seq INTEGER PRIMARY KEY, nonce TEXT NOT NULL);

-- Rows on their way to other files; a body of NULL is the body of the change with the same seq.
CREATE TABLE outflow (
    seq INTEGER PRIMARY KEY, file TEXT NOT NULL, id TEXT NOT NULL, body BLOB
);
