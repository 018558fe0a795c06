-- Rules that several schedules share.
CREATE TABLE sched_policies (
    name  TEXT PRIMARY KEY,
    rules TEXT NOT NULL                     -- JSON
) STRICT;

CREATE TABLE schedules (
    uuid    TEXT PRIMARY KEY,
    created TEXT NOT NULL,
    paused  INTEGER NOT NULL CHECK (paused IN (0, 1)),
    policy  TEXT REFERENCES sched_policies (name),
    spec    TEXT NOT NULL                   -- JSON: everything that is not searched for
) STRICT;

-- Up to when all runs of a rule are dealt with. Moved in the transaction that adds the runs.
CREATE TABLE schedule_cursors (
    schedule         TEXT NOT NULL REFERENCES schedules (uuid) ON DELETE CASCADE,
    rule             TEXT NOT NULL,         -- its text: a rule that is changed is another one
    dealt_with_until TEXT NOT NULL,
    PRIMARY KEY (schedule, rule)
) STRICT;

-- No foreign keys: what was done is told after its schedule, volume or credential is gone.
CREATE TABLE schedule_runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    schedule    TEXT NOT NULL,
    rule        TEXT,                       -- NULL: asked for by somebody
    nominal     TEXT NOT NULL,
    started     TEXT NOT NULL,
    missed      INTEGER NOT NULL,
    priority    INTEGER NOT NULL,
    force_full  INTEGER NOT NULL CHECK (force_full IN (0, 1)),
    volume      TEXT,                       -- NULL: no volume was found
    volume_name TEXT,
    credential  TEXT,
    state       TEXT NOT NULL CHECK (state IN ('queued', 'active', 'done', 'failed', 'skipped', 'expired')),
    task        TEXT,
    cloudsnap   TEXT,
    completed   TEXT,
    reason      TEXT,
    pool        TEXT NOT NULL DEFAULT '',   -- with which others it is judged; '': with those of all rules that have no retention
    retain      TEXT,                       -- JSON: the retention of its rule, for when that is gone
    freed       INTEGER NOT NULL DEFAULT 0 CHECK (freed IN (0, 1)) -- the clock was set back: its instant comes again
) STRICT;
CREATE UNIQUE INDEX schedule_runs_once ON schedule_runs (schedule, rule, nominal, volume, credential)
    WHERE rule IS NOT NULL AND freed = 0;
CREATE INDEX schedule_runs_by_cloudsnap ON schedule_runs (cloudsnap) WHERE cloudsnap IS NOT NULL;
CREATE INDEX schedule_runs_by_state ON schedule_runs (state, priority, id);
