-- What people said of how long cloud snapshots stay.
CREATE TABLE cloudsnap_marks (
    cloudsnap  TEXT PRIMARY KEY,            -- without `-incr`
    credential TEXT NOT NULL,               -- where it was found; others may lead there, too
    pinned     INTEGER NOT NULL CHECK (pinned IN (0, 1)),
    expires    TEXT
) STRICT;
