-- Volumes that are devices of this host's kernel; a volume has at most one. A device outlives the daemon: at its start
-- the daemon finds the devices in these rows again by what the kernel says of their backend.
CREATE TABLE attachments (
    volume           TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    state            TEXT NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching')),
    device           INTEGER,               -- N of /dev/nbdN; NULL: any, and none was given yet
    pinned           INTEGER NOT NULL CHECK (pinned IN (0, 1)), -- it must be that device and no other
    read_only        INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    persistent       INTEGER NOT NULL CHECK (persistent IN (0, 1)),
    timeout_s        INTEGER NOT NULL,
    dead_timeout_s   INTEGER NOT NULL,
    connections      INTEGER NOT NULL,
    block_size_bytes INTEGER NOT NULL
) STRICT;
