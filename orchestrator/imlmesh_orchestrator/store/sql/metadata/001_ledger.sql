-- The ledger. `entry` is the exact bytes that are hashed; the columns beside it only help to find it.
CREATE TABLE entries (
    n INTEGER PRIMARY KEY,
    entry BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL
);

-- What an entry commits to: HMAC-SHA256 of payload by salt. A row may be erased; the chain stays whole.
CREATE TABLE payloads (n INTEGER PRIMARY KEY, salt BLOB NOT NULL, payload BLOB NOT NULL);

-- The root of each complete subtree of 2^level leaves that begins at leaf `at` * 2^level.
CREATE TABLE hashes (
    level INTEGER NOT NULL, at INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, at)
) WITHOUT ROWID;

-- The signed heads; `seal` is the whole document as nodes get it. A size may come twice: after a loss.
CREATE TABLE seals (
    number INTEGER PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, at_ms INTEGER NOT NULL, seal BLOB NOT NULL
);

-- Up to which change of lifecycle entries were made; written with them.
CREATE TABLE ledgered (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL);

-- Against accidents alone: who may write the file may drop them. Seals and witnesses are what tells.
CREATE TRIGGER entries_appended BEFORE INSERT ON entries
    WHEN NEW.n <> (SELECT coalesce(max(n), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'entries are only ever appended'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER entries_unchanged BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER seals_stay BEFORE DELETE ON seals
    BEGIN SELECT RAISE(ABORT, 'seals are never deleted'); END;
CREATE TRIGGER seals_unchanged BEFORE UPDATE ON seals
    BEGIN SELECT RAISE(ABORT, 'seals are never changed'); END;
