-- The group that a volume is frozen with; NULL: none.
ALTER TABLE volumes ADD COLUMN group_name TEXT;
-- What a snapshot has in common with those that were taken at the same instant, JSON; NULL: it was taken alone.
ALTER TABLE snapshots ADD COLUMN taken_with TEXT;
-- What was done to bring applications and filesystems to rest, JSON; NULL: nothing.
ALTER TABLE snapshots ADD COLUMN quiesce TEXT;
