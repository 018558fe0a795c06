-- Up to which event each reader has dealt with them: the journal, and every webhook.
CREATE TABLE event_readers (
    reader           TEXT PRIMARY KEY,
    dealt_with_until INTEGER NOT NULL       -- the event's id
) STRICT;

ALTER TABLE events ADD COLUMN cloudsnap TEXT;
