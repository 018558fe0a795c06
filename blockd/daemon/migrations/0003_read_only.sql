-- Whether NBD clients may only read a volume.
ALTER TABLE volumes ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;
