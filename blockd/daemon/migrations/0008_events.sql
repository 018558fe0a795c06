-- What people should know of. The oldest are forgotten.
CREATE TABLE events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         TEXT NOT NULL,
    severity   TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    kind       TEXT NOT NULL,
    volume     TEXT,                        -- the name that it had
    credential TEXT,                        -- likewise
    task       TEXT,
    message    TEXT NOT NULL
) STRICT;
