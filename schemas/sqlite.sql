-- The embedded store, as one file of registry and one file a run. Statements end with a semicolon; each part begins with its name.

-- part: registry
CREATE TABLE IF NOT EXISTS runs (
    run_id     TEXT PRIMARY KEY,
    state      TEXT NOT NULL,
    rows       INTEGER,
    created_at TEXT NOT NULL,  -- ISO 8601, UTC
    changed_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS release (
    name         TEXT PRIMARY KEY CHECK (name = 'live'),
    run_id       TEXT NOT NULL,
    previous     TEXT,
    sequence     INTEGER NOT NULL,
    published_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS lease (
    name       TEXT PRIMARY KEY CHECK (name = 'publisher'),
    owner      TEXT NOT NULL,
    fence      INTEGER NOT NULL,
    expires_at TEXT NOT NULL
);

-- part: lists
CREATE TABLE lists (
    kind      TEXT NOT NULL,
    key       TEXT NOT NULL,
    items     TEXT NOT NULL,   -- JSON array of strings
    scores    BLOB NOT NULL,   -- float32, little-endian, one an item: exact, and half the size of text
    sources   TEXT NOT NULL,   -- JSON array of strings
    scored_at TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;               -- the row lies in the key's own B-tree: one read a lookup
