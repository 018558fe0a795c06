-- What is done around freezes, by name.
CREATE TABLE rules (
    name    TEXT PRIMARY KEY,
    quiesce TEXT NOT NULL                   -- JSON
) STRICT;

-- What has a rule. Schedules have theirs with everything else of them.
CREATE TABLE rules_of_volumes (
    volume TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    rule   TEXT NOT NULL REFERENCES rules (name)
) STRICT;
CREATE TABLE rules_of_groups (
    group_name TEXT PRIMARY KEY,
    rule       TEXT NOT NULL REFERENCES rules (name)
) STRICT;
