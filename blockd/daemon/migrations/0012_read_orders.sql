-- In which order lazy volumes that began as cloud snapshots of a volume were read, so that the next one fetches that first.
CREATE TABLE read_orders (
    cluster TEXT NOT NULL,                  -- that made the cloud snapshots
    volume  TEXT NOT NULL,                  -- that they are of, which need not be on this host
    updated INTEGER NOT NULL,               -- microseconds since 1970
    places  BLOB NOT NULL,                  -- blockd/daemon/src/db/read_orders.rs says how
    PRIMARY KEY (cluster, volume)
) STRICT;
