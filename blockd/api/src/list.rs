//! Lists and the version of documents.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of all JSON documents. It changes with a field that is renamed or removed, not with an additional
/// one.
pub const SCHEMA_VERSION: u32 = 1;

/// List of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// Entries.
    pub items: Vec<T>,
    /// Cursor of the next entries; `null` at the end and if the operation does not page.
    pub next: Option<u64>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::from(Vec::from_iter(items))
    }
}

/// Document with its version, as sent and printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Content; a JSON object.
    #[serde(flatten)]
    pub content: T,
}

impl<T> Document<T> {
    /// Adds the version to a content.
    pub fn new(content: T) -> Self {
        Self { schema_version: SCHEMA_VERSION, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_version_beside_content() {
        let document = Document::new(List::from(vec![7]));
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(json, r#"{"schemaVersion":1,"items":[7],"next":null}"#);
        assert_eq!(serde_json::from_str::<Document<List<u8>>>(&json).unwrap(), document);
    }
}
