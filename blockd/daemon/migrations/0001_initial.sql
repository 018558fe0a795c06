-- What the daemon must remember of itself.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Ids of volumes and snapshots are 64-bit numbers, kept as decimal text: SQLite's integers are signed.
CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
    labels     TEXT NOT NULL,               -- JSON object of strings
    created    TEXT NOT NULL,               -- RFC 3339, UTC; so are all times
    state      TEXT NOT NULL CHECK (state IN ('creating', 'restoring', 'up', 'deleting'))
) STRICT;

CREATE TABLE snapshots (
    id                  TEXT PRIMARY KEY,
    volume              TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    name                TEXT NOT NULL,
    created             TEXT NOT NULL,
    state               TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    internal            INTEGER NOT NULL CHECK (internal IN (0, 1)), -- made by a backup for itself
    epoch               INTEGER NOT NULL,
    dirty_bytes         INTEGER NOT NULL,
    freeze_stall_micros INTEGER NOT NULL,
    UNIQUE (volume, name)
) STRICT;

CREATE TABLE credentials (
    uuid                  TEXT PRIMARY KEY,
    name                  TEXT NOT NULL UNIQUE,
    created               TEXT NOT NULL,
    provider              TEXT NOT NULL,    -- JSON: everything of the store that is no secret
    store_secret          BLOB,             -- sealed; absent where the store needs none
    data_keys             BLOB NOT NULL,    -- sealed
    encrypted             INTEGER NOT NULL CHECK (encrypted IN (0, 1)),
    capabilities          TEXT NOT NULL     -- JSON: what the probe found
) STRICT;

-- The newest backup of a volume to a credential: what the next incremental builds on.
CREATE TABLE chains (
    volume       TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    credential   TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    epoch        INTEGER NOT NULL,
    cloudsnap    TEXT NOT NULL,
    incrementals INTEGER NOT NULL,          -- since the last full one
    finished     TEXT NOT NULL,
    PRIMARY KEY (volume, credential)
) STRICT;

-- No foreign keys: what a task did is told after its volume or credential is gone.
CREATE TABLE tasks (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('backup', 'restore', 'delete')),
    state      TEXT NOT NULL CHECK (state IN ('pending', 'active', 'done', 'failed')),
    volume     TEXT,
    snapshot   TEXT,
    credential TEXT NOT NULL,
    cloudsnap  TEXT NOT NULL,
    base       TEXT,                        -- the cloudsnap that an incremental builds on
    created    TEXT NOT NULL,
    detail     TEXT NOT NULL                -- JSON: everything that is not searched for
) STRICT;
CREATE INDEX tasks_by_state ON tasks (state, created);
CREATE INDEX tasks_by_created ON tasks (created);

-- Manifests never change, so what was read once need not be fetched again. A cache: it may be emptied at any time.
CREATE TABLE catalog (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    version    TEXT,                        -- of the object that it was read from; NULL: this host wrote it
    manifest   TEXT NOT NULL,               -- JSON
    PRIMARY KEY (credential, key)
) STRICT;
