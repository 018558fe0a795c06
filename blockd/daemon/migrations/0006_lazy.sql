-- Volumes that began as a cloud snapshot and do not have all of it yet: where the rest is, and what is to be done about it.
CREATE TABLE lazy_volumes (
    volume        TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    credential    TEXT NOT NULL,
    cloudsnap     TEXT NOT NULL,
    hydrate       INTEGER NOT NULL CHECK (hydrate IN (0, 1)), -- a task fetches the rest
    on_store_loss TEXT NOT NULL CHECK (on_store_loss IN ('stall', 'error'))
) STRICT;
