-- Tasks of more kinds and states than before: which there are, the program says.
CREATE TABLE tasks_of_any_kind (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    volume     TEXT,
    snapshot   TEXT,
    credential TEXT NOT NULL,
    cloudsnap  TEXT NOT NULL,
    base       TEXT,                        -- the cloudsnap that an incremental builds on
    created    TEXT NOT NULL,
    detail     TEXT NOT NULL                -- JSON: everything that is not searched for
) STRICT;
INSERT INTO tasks_of_any_kind SELECT id, kind, state, volume, snapshot, credential, cloudsnap, base, created, detail FROM tasks;
DROP TABLE tasks;
ALTER TABLE tasks_of_any_kind RENAME TO tasks;
CREATE INDEX tasks_by_state ON tasks (state, created);
CREATE INDEX tasks_by_created ON tasks (created);

-- What is known of cloud snapshots that were verified, the last time that each was.
CREATE TABLE proofs (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap  TEXT NOT NULL,
    verified   TEXT NOT NULL,
    depth      TEXT NOT NULL CHECK (depth IN ('quick', 'frames', 'deep')),
    sound      INTEGER NOT NULL CHECK (sound IN (0, 1)),
    damaged    BLOB,                        -- the blocks that cannot be read, a block set; NULL: none, or all
    digest     BLOB,                        -- of the content, once it was brought back whole
    PRIMARY KEY (credential, cloudsnap)
) STRICT;
