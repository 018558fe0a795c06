//! Schemas of types with a text form; all other types derive theirs.
//!
//! A pattern accepts at least what the type's parser accepts; rules that a pattern cannot express (a name
//! that is not a UUID) are in the description.

use crate::{
    CredentialName, CredentialRef, DailyLimit, ErrorCode, GroupName, GroupRef, GroupSnapshotRef,
    LabelSelector, Labels, LimitWindow, ObjectName, ProbeName, RuleName, SnapshotName, SnapshotRef,
    VolumeName, VolumeRef, browse::FilePath, schedules::PolicyName, tasks::TaskState,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

macro_rules! text_schema {
    ($($type:ident: $description:literal $(, $key:literal: $value:expr)* ;)+) => {
        $(
            impl JsonSchema for $type {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "description": $description, "type": "string" $(, $key: $value)* })
                }
            }
        )+
    };
}

/// Starts with a letter or digit, and is not all digits.
const NAME: &str = "^([A-Za-z]|[0-9]+[A-Za-z._-])[A-Za-z0-9._-]*$";
/// Name or number.
const NAME_OR_ID: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
const NAME_MAX_LEN: usize = crate::names::MAX_NAME_BYTES;

text_schema! {
    VolumeName: "Name of a volume, and of its export", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    SnapshotName: "Name of a snapshot among those of its volume", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    CredentialName: "Name of a credential; it must be no UUID", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    GroupName: "Name of a consistency group; it must be no UUID", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    ObjectName: "Name of a schedule or backup; it must be no UUID",
        "pattern": NAME, "maxLength": NAME_MAX_LEN;
    RuleName: "Name of a rule; it must be no UUID", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    PolicyName: "Name of a schedule policy", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    ProbeName: "Name of a probe of restore drills", "pattern": NAME, "maxLength": NAME_MAX_LEN;
    VolumeRef: "A volume, by its id (a decimal number) or its name",
        "pattern": NAME_OR_ID, "maxLength": NAME_MAX_LEN;
    SnapshotRef: "A snapshot, by its id (a decimal number) or as VOLUME@NAME",
        "pattern": "^([1-9][0-9]{0,19}|[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._-]*)$";
    CredentialRef: "A credential, by its UUID, a unique prefix of it, or its name",
        "pattern": NAME_OR_ID, "maxLength": NAME_MAX_LEN;
    GroupRef: "Group snapshots: one by its UUID, or all of a group by its name",
        "pattern": NAME, "maxLength": NAME_MAX_LEN;
    GroupSnapshotRef: "A group snapshot, by its UUID, a unique prefix of it, or the name of its snapshots",
        "pattern": NAME_OR_ID, "maxLength": NAME_MAX_LEN;
    LabelSelector: "Label selector: key=value pairs separated by commas",
        "examples": ["app=shop,tier=db"];
    TaskState: "Type and state of a task",
        "pattern": "^(Backup|Restore|Delete|Verify|Drill|Scrub|Repair)-(Pending|Active|Done|Failed|Stopped)$";
    FilePath: "A path inside a snapshot; bytes that are not UTF-8, control characters and % are escaped as % and two hexadecimal digits",
        "examples": ["/etc/passwd"];
    LimitWindow: "Bandwidth limit, in bytes per second, in a window of each day",
        "examples": ["20MiB@08:00-18:00"];
    DailyLimit: "Bandwidth limit by the time of day: windows, and the limit outside of them, separated by commas",
        "examples": ["20MiB@08:00-18:00,100MiB"];
    ErrorCode: "Cause of a failure, for programs; later versions may add codes", "enum": ErrorCode::ALL;
}

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Labels by their keys; neither keys nor values have commas or control characters, keys have no =",
            "type": "object",
            "maxProperties": crate::labels::MAX_PAIRS,
            "propertyNames": { "pattern": "^[^,=\\x00-\\x1f\\x7f-\\x9f]+$", "maxLength": crate::labels::MAX_KEY_BYTES },
            "additionalProperties": {
                "type": "string",
                "pattern": "^[^,\\x00-\\x1f\\x7f-\\x9f]*$",
                "maxLength": crate::labels::MAX_VALUE_BYTES
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{CloudSnapshotId, NbdDevice};

    /// Returns the pattern of a type, to check that it accepts every text of the parser.
    fn pattern_of<T: JsonSchema>() -> String {
        let schema = T::json_schema(&mut SchemaGenerator::default());
        schema.get("pattern").and_then(|value| value.as_str()).unwrap().to_owned()
    }

    fn same<T: JsonSchema + std::str::FromStr>(good: &[&str], bad: &[&str]) {
        let pattern = regex::Regex::new(&pattern_of::<T>()).unwrap();
        for text in good {
            assert!(pattern.is_match(text) && text.parse::<T>().is_ok(), "{} {text:?}", T::schema_name());
        }
        for text in bad {
            assert!(!pattern.is_match(text) && text.parse::<T>().is_err(), "{} {text:?}", T::schema_name());
        }
    }

    #[test]
    fn patterns_accept_the_same_inputs_as_parsers() {
        let names = ["a", "db-1", "0a", "1.2", "A_b.c-d", "9-9", "1-"];
        let bad = ["", " a", "a b", "-a", ".a", "12", "a/b", "a@b", "ä"];
        same::<VolumeName>(&names, &bad);
        same::<CredentialName>(&names, &bad);
        same::<PolicyName>(&names, &bad);
        same::<VolumeRef>(&["a", "0a", "42"], &["", "-a", "a b"]);
        same::<SnapshotRef>(&["v@monday", "7@monday", "7"], &["", "x", "0", "07", "v@", "@s"]);
        same::<CredentialRef>(&["nas", "4070", "af563a4d-afd7-48df-90f7-8e8f9414ff77"], &["", "a b", "-"]);
        same::<CloudSnapshotId>(
            &[
                "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2",
                "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337066-incr",
            ],
            &[
                "",
                "2e4d4b67-95d7-481e-aec5-14223ac55170/01-2",
                "2e4d4b6795d7481eaec514223ac55170/1-2",
                "../1-2",
            ],
        );
        same::<TaskState>(&["Backup-Active", "Verify-Stopped"], &["", "backup-Active", "Done-Backup"]);
        same::<NbdDevice>(&["/dev/nbd7", "nbd0"], &["", "sda", "/dev/nbd", "/dev/nbd07"]);
    }
}
