-- Tables of the daemon's database, version 1. Times are RFC 3339 in UTC. Ids of volumes and snapshots are 64-bit
-- numbers, kept as decimal text because SQLite's integers are signed.

-- The daemon's own identity and settings.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
    labels     TEXT NOT NULL,               -- JSON object of strings
    created    TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('creating', 'restoring', 'up', 'deleting')),
    read_only  INTEGER NOT NULL DEFAULT 0,  -- NBD clients may only read
    group_name TEXT                         -- consistency group; NULL: none
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
    taken_with          TEXT,               -- JSON: the group freeze that it belongs to; NULL: frozen alone
    quiesce             TEXT,               -- JSON: hooks that ran and their results; NULL: none
    pinned              INTEGER NOT NULL DEFAULT 0,
    UNIQUE (volume, name)
) STRICT;

CREATE TABLE credentials (
    uuid              TEXT PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    created           TEXT NOT NULL,
    store             TEXT NOT NULL,        -- JSON: store configuration without values of secrets
    store_secret      BLOB,                 -- sealed; NULL where the store needs none, or has a reference
    data_keys         BLOB NOT NULL,        -- sealed; empty where the passphrase is a reference
    encrypted         INTEGER NOT NULL CHECK (encrypted IN (0, 1)),
    capabilities      TEXT NOT NULL,        -- JSON: results of the store probe
    passphrase_from   TEXT,                 -- reference to an external secret
    key_slots         BLOB NOT NULL,        -- key slots as last seen whole; wrapped, not secret
    write_key         TEXT NOT NULL,        -- data key of new backups: the newest that this host made or accepted
    write_key_created INTEGER NOT NULL,     -- seconds since 1970
    listed            TEXT,                 -- last complete listing of its manifests; NULL: none
    labels            TEXT NOT NULL DEFAULT '{}' -- JSON object of strings
) STRICT;

-- The newest backup of a volume to a credential: the base of the next incremental one.
CREATE TABLE chains (
    volume        TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    credential    TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    epoch         INTEGER NOT NULL,
    cloudsnap     TEXT NOT NULL,
    incrementals  INTEGER NOT NULL,         -- since the last full one
    point_in_time TEXT NOT NULL,
    PRIMARY KEY (volume, credential)
) STRICT;

-- No foreign keys: a task is reported after its volume or credential was deleted.
CREATE TABLE tasks (
    id         TEXT PRIMARY KEY,
    spec       TEXT NOT NULL,               -- JSON: kind and request
    kind       TEXT NOT NULL AS (json_extract(spec, '$.kind')),
    state      TEXT NOT NULL,
    volume     TEXT,
    snapshot   TEXT,
    credential TEXT NOT NULL,
    cloudsnap  TEXT NOT NULL,
    base       TEXT,                        -- cloud snapshot that an incremental builds on
    created    TEXT NOT NULL,
    owner      TEXT NOT NULL,               -- JSON: the caller, schedule or daemon that started it
    detail     TEXT NOT NULL                -- JSON: fields that no query selects by
) STRICT;
CREATE INDEX tasks_by_state ON tasks (state, created);
CREATE INDEX tasks_by_created ON tasks (created);

-- Cache of manifests, which never change; it may be emptied at any time.
CREATE TABLE catalog (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    version    TEXT,                        -- of the object that it was read from; NULL: this host wrote it
    created_ns INTEGER NOT NULL,            -- point in time, since 1970
    deltas     TEXT NOT NULL,               -- JSON: stored bytes of each delta that it needs, by its cloud snapshot
    manifest   TEXT NOT NULL,               -- JSON
    PRIMARY KEY (credential, key)
) STRICT;

-- Volumes that are devices of this host's kernel, at most one device each. A device outlives the daemon, which at its
-- start finds the devices in these rows again by the backend identifier that the kernel holds.
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

-- Result of the last verification of each cloud snapshot by this host.
CREATE TABLE proofs (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap  TEXT NOT NULL,
    verified   TEXT NOT NULL,
    depth      TEXT NOT NULL CHECK (depth IN ('quick', 'full', 'deep')),
    sound      INTEGER NOT NULL CHECK (sound IN (0, 1)),
    damaged    BLOB,                        -- set of blocks that cannot be read; NULL: none, or all
    digest     BLOB,                        -- of the content, once it was restored in full
    version    TEXT NOT NULL,               -- of blockd
    location   TEXT,                        -- id of the location that was read; NULL: unknown
    published  INTEGER NOT NULL CHECK (published IN (0, 1)), -- the location has it as a proof
    PRIMARY KEY (credential, cloudsnap)
) STRICT;

-- Newest result of each depth that another host published about a cloud snapshot.
CREATE TABLE host_proofs (
    credential     TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap      TEXT NOT NULL,
    host           TEXT NOT NULL,           -- its installation
    depth          TEXT NOT NULL CHECK (depth IN ('quick', 'full', 'deep')),
    proven_unix_ms INTEGER NOT NULL,        -- by the clock of that host
    verified       TEXT NOT NULL,           -- time from which it counts
    sound          INTEGER NOT NULL CHECK (sound IN (0, 1)),
    host_name      TEXT NOT NULL,
    version        TEXT NOT NULL,
    PRIMARY KEY (credential, cloudsnap, host, depth)
) STRICT;

-- Restore drills of this and other hosts, newest ones kept; also of deleted cloud snapshots.
CREATE TABLE drills (
    id          TEXT PRIMARY KEY,           -- of this host: that of its task
    credential  TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap   TEXT NOT NULL,
    volume_name TEXT NOT NULL,              -- at the backup
    host        TEXT,                       -- NULL: this one
    version     TEXT NOT NULL,              -- of blockd
    ended       TEXT NOT NULL,
    passed      INTEGER NOT NULL CHECK (passed IN (0, 1)),
    report      TEXT NOT NULL,              -- JSON
    location    TEXT,                       -- as in `proofs`
    published   INTEGER NOT NULL CHECK (published IN (0, 1)) -- the location has it as a proof
) STRICT;

-- Progress of the scrub of each volume.
CREATE TABLE scrubs (
    volume    TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    epoch     INTEGER NOT NULL,             -- last epoch of the layer that is read next
    block     INTEGER NOT NULL,             -- first block of it that is read next
    completed TEXT                          -- end of the last complete scrub; NULL: none
) STRICT;

-- Lazy volumes that are not hydrated: their backing snapshot and its treatment.
CREATE TABLE lazy_volumes (
    volume        TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    credential    TEXT NOT NULL,
    cloudsnap     TEXT NOT NULL,
    hydrate       INTEGER NOT NULL CHECK (hydrate IN (0, 1)), -- a task fetches the rest
    on_store_loss TEXT NOT NULL CHECK (on_store_loss IN ('stall', 'error')),
    leased        TEXT                      -- last renewal of its lease; NULL: none
) STRICT;

-- Lazy volumes of other hosts that need cloud snapshots, as the location last listed them.
CREATE TABLE leases (
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap  TEXT NOT NULL,
    host       TEXT NOT NULL,               -- its installation
    volume     TEXT NOT NULL,
    host_name  TEXT NOT NULL,
    stored     TEXT,                        -- last renewal by the clock of the location; NULL: unknown
    PRIMARY KEY (credential, cloudsnap, host, volume)
) STRICT;

-- Schedule policies, shared by several schedules.
CREATE TABLE sched_policies (
    name   TEXT PRIMARY KEY,
    rules  TEXT NOT NULL,                   -- JSON
    labels TEXT NOT NULL                    -- JSON object of strings
) STRICT;

CREATE TABLE schedules (
    uuid    TEXT PRIMARY KEY,
    created TEXT NOT NULL,
    paused  INTEGER NOT NULL CHECK (paused IN (0, 1)),
    policy  TEXT REFERENCES sched_policies (name),
    spec    TEXT NOT NULL                   -- JSON: fields that no query selects by
) STRICT;

-- The time up to which all runs of a rule are recorded; moved in the transaction that adds the runs.
CREATE TABLE schedule_cursors (
    schedule         TEXT NOT NULL REFERENCES schedules (uuid) ON DELETE CASCADE,
    rule             TEXT NOT NULL,         -- its text: a changed rule is another one
    processed_until TEXT NOT NULL,
    PRIMARY KEY (schedule, rule)
) STRICT;

-- No foreign keys: a run is reported after its schedule, volume or credential was deleted.
CREATE TABLE schedule_runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    schedule    TEXT NOT NULL,
    rule        TEXT,                       -- NULL: requested by a user
    nominal     TEXT NOT NULL,
    started     TEXT NOT NULL,
    missed      INTEGER NOT NULL,
    priority    INTEGER NOT NULL,
    force_full  INTEGER NOT NULL CHECK (force_full IN (0, 1)),
    volume      TEXT,                       -- NULL: no volume was found
    volume_name TEXT,
    credential  TEXT,                       -- the nil UUID: a local snapshot
    state       TEXT NOT NULL CHECK (state IN ('queued', 'active', 'retrying', 'done', 'failed', 'skipped', 'expired')),
    task        TEXT,
    cloudsnap   TEXT,
    completed   TEXT,
    reason      TEXT,
    pool        TEXT NOT NULL DEFAULT '',   -- retention pool: '' of all rules without their own, RULE, 'manual ' or 'manual RULE'
    retain      TEXT,                       -- JSON: retention of its rule, valid after the rule was deleted
    freed       INTEGER NOT NULL DEFAULT 0 CHECK (freed IN (0, 1)), -- the clock was set back: its time may recur
    snapshot    TEXT,                       -- local snapshot that the run keeps
    retries     INTEGER NOT NULL DEFAULT 0, -- resumptions of its failed backup
    retry_at    TEXT,                       -- of the next one
    schedule_name TEXT                      -- name of its schedule, once that was deleted
) STRICT;
CREATE UNIQUE INDEX schedule_runs_once ON schedule_runs (schedule, rule, nominal, volume, credential)
    WHERE rule IS NOT NULL AND freed = 0;
CREATE INDEX schedule_runs_by_cloudsnap ON schedule_runs (cloudsnap) WHERE cloudsnap IS NOT NULL;
CREATE INDEX schedule_runs_by_snapshot ON schedule_runs (snapshot) WHERE snapshot IS NOT NULL;
CREATE INDEX schedule_runs_by_state ON schedule_runs (state, priority, id);

-- Events; the oldest are deleted.
CREATE TABLE events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         TEXT NOT NULL,
    severity   TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    kind       TEXT NOT NULL,
    volume_id  TEXT,
    volume     TEXT,                        -- the name at the time of the event
    credential_id TEXT,
    credential TEXT,                        -- the name at the time of the event
    task       TEXT,
    message    TEXT NOT NULL,
    cloudsnap  TEXT,
    failed_step TEXT                        -- JSON: step at which a drill failed
) STRICT;

-- The last event that each reader (the journal, every webhook) has processed.
CREATE TABLE event_readers (
    reader           TEXT PRIMARY KEY,
    processed_until  INTEGER NOT NULL       -- id of the event
) STRICT;

-- Cloud snapshots that may be listed without being whole, because the result of their commit is unknown.
CREATE TABLE doubts (
    credential   TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    cloudsnap    TEXT NOT NULL,
    since        TEXT NOT NULL,
    is_abandoned INTEGER NOT NULL CHECK (is_abandoned IN (0, 1)), -- its backup was abandoned: shown as damaged if it is not whole
    is_checked   INTEGER NOT NULL CHECK (is_checked IN (0, 1)), -- checked once
    PRIMARY KEY (credential, cloudsnap)
) STRICT;

-- Activity of the backups of a volume to a credential; the oldest rows are deleted.
CREATE TABLE backup_activity (
    volume        TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    credential    TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    point_in_time TEXT NOT NULL,
    activity      TEXT NOT NULL,            -- JSON
    PRIMARY KEY (volume, credential, point_in_time)
) STRICT;

-- Content of a volume at its last backup to a credential.
CREATE TABLE content_profiles (
    volume       TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    credential   TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    compressible BLOB NOT NULL,             -- set of the sampled blocks with compressible data
    files        INTEGER,                   -- NULL: the filesystem is unknown
    replaced     INTEGER NOT NULL CHECK (replaced IN (0, 1)), -- by a rollback or restore since
    PRIMARY KEY (volume, credential)
) STRICT;

-- Anomalies of backups. No foreign keys: they hold cloud snapshots after their volume was deleted.
CREATE TABLE anomalies (
    id              TEXT PRIMARY KEY,
    volume          TEXT NOT NULL,
    volume_name     TEXT NOT NULL,          -- at the time of the backup
    credential      TEXT NOT NULL,
    credential_name TEXT NOT NULL,          -- at the time of the backup
    cloudsnap       TEXT NOT NULL,          -- the backup
    last_normal     TEXT,                   -- the backup before it; NULL: none
    detected        TEXT NOT NULL,
    findings        TEXT NOT NULL,          -- JSON
    activity        TEXT NOT NULL,          -- JSON: activity of the backup, usual after an acknowledgement as such
    protects        INTEGER NOT NULL CHECK (protects IN (0, 1)), -- holds the backups of the volume until acknowledged
    acknowledged    TEXT
) STRICT;

-- Pins and expiry dates of cloud snapshots.
CREATE TABLE cloudsnap_marks (
    cloudsnap  TEXT NOT NULL,               -- without `-incr`
    credential TEXT NOT NULL REFERENCES credentials (uuid) ON DELETE CASCADE,
    pinned     INTEGER NOT NULL CHECK (pinned IN (0, 1)),
    expires    TEXT,
    PRIMARY KEY (cloudsnap, credential)
) STRICT;

-- Hooks quiesce_rules freezes, by name.
CREATE TABLE rules (
    name    TEXT PRIMARY KEY,
    quiesce TEXT NOT NULL,                  -- JSON
    labels  TEXT NOT NULL                   -- JSON object of strings
) STRICT;

-- Rules assigned to volumes and groups; those of schedules are in `schedules.spec`.
CREATE TABLE rules_of_volumes (
    volume TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    rule   TEXT NOT NULL REFERENCES rules (name)
) STRICT;
CREATE TABLE rules_of_groups (
    group_name TEXT PRIMARY KEY,
    rule       TEXT NOT NULL REFERENCES rules (name)
) STRICT;
