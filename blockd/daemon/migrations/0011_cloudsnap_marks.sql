-- What people said of how long cloud snapshots stay.
CREATE TABLE cloudsnap_marks (
    cloudsnap  TEXT NOT NULL,               -- without `-incr`
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    pinned     INTEGER NOT NULL CHECK (pinned IN (0, 1)),
    expires    TEXT,
    PRIMARY KEY (cloudsnap, credential)
) STRICT;
