-- Changes about doubts of the ledger, kept for ever: a restart must not forget them.
CREATE TABLE doubts (seq INTEGER PRIMARY KEY);
