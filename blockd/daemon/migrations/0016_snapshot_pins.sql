-- Local snapshots that stay until somebody says otherwise.
ALTER TABLE snapshots ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
