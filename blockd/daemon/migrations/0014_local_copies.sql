-- Local snapshots that schedules keep: their runs have no place (the nil UUID stands there), and this.
ALTER TABLE schedule_runs ADD COLUMN snapshot TEXT;
CREATE INDEX schedule_runs_by_snapshot ON schedule_runs (snapshot) WHERE snapshot IS NOT NULL;
