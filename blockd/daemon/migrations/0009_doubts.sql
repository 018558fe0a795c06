-- Cloud snapshots that may be listed without being whole, because of what was not learned about their commit.
CREATE TABLE doubts (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap  TEXT NOT NULL,
    since      TEXT NOT NULL,
    given_up   INTEGER NOT NULL CHECK (given_up IN (0, 1)), -- its backup was: what is listed of it is looked at, and shown as damaged if it is not whole
    looked_at  INTEGER NOT NULL CHECK (looked_at IN (0, 1)), -- that was done once
    PRIMARY KEY (credential, cloudsnap)
) STRICT;
