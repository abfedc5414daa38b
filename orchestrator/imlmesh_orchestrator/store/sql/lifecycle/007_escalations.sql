-- what each node asked a person about last; a replay reads these rows of changes
CREATE TABLE escalations (node TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
