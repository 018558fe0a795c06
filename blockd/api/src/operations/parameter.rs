//! Path parameters of operations.

use crate::{CredentialRef, RuleName, SnapshotRef, VolumeRef, schedules::PolicyName, uri::encode};
use schemars::{Schema, SchemaGenerator};
use uuid::Uuid;

/// Parameter in the path of an operation; `()` if there is none.
pub trait PathParameter: Sized {
    /// Returns the path of a route pattern, with the percent-encoded value in place of `{…}`.
    fn fill(&self, pattern: &str) -> String;

    /// Parses a decoded path segment.
    ///
    /// # Errors
    /// The text is not a value of this type.
    fn parse(segment: &str) -> Result<Self, String>;

    /// Returns the schema.
    fn schema(schemas: &mut SchemaGenerator) -> Option<Schema>;
}

impl PathParameter for () {
    fn fill(&self, pattern: &str) -> String {
        pattern.to_owned()
    }

    fn parse(_: &str) -> Result<Self, String> {
        Ok(())
    }

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }
}

macro_rules! path_parameters {
    ($($type:ty),+) => {
        $(
            impl PathParameter for $type {
                fn fill(&self, pattern: &str) -> String {
                    let value = encode(self.to_string().as_bytes(), b"@");
                    match (pattern.split_once('{'), pattern.split_once('}')) {
                        (Some((before, _)), Some((_, after))) => format!("{before}{value}{after}"),
                        _ => pattern.to_owned(),
                    }
                }

                fn parse(segment: &str) -> Result<Self, String> {
                    segment.parse().map_err(|error: <Self as std::str::FromStr>::Err| error.to_string())
                }

                fn schema(schemas: &mut SchemaGenerator) -> Option<Schema> {
                    Some(schemas.subschema_for::<$type>())
                }
            }
        )+
    };
}

path_parameters! { VolumeRef, SnapshotRef, CredentialRef, PolicyName, RuleName, Uuid }
