//! Parts of documents of ours.

use crate::objects::{
    document::{Document, Problem},
    kind::{API_VERSION, Kind},
    values::NAMESPACE,
};
use serde_json::{Map, Value, json};

/// Path of the field with which a restore is of all volumes of a backup.
pub const MAPPING: &str = "spec.namespaceMapping";

/// Begins a document of ours.
pub fn begin(document: &Document, kind: Kind, name: &str) -> Document {
    let mut native = document.emptied();
    native.set("apiVersion", API_VERSION.into(), "apiVersion");
    native.set("kind", json!(kind), "kind");
    native.set("metadata.name", name.into(), "metadata.name");
    native
}

/// Volumes that a document selects: those with all labels, in any of the namespaces.
pub struct Selection {
    pub namespaces: Vec<String>,
    labels: Map<String, Value>,
    /// Field for messages.
    pub field: String,
}

impl Selection {
    /// Takes the namespaces and labels; without both, the namespace of the document.
    pub fn take(document: &mut Document, namespaces: &str, labels: &str) -> Result<Self, Problem> {
        let mut found = Self { namespaces: Vec::new(), labels: Map::new(), field: namespaces.to_owned() };
        if let Some(given) = document.take_as(labels, "labels are expected")? {
            (found.labels, found.field) = (given, labels.to_owned());
        }
        if let Some(given) = document.take_texts(namespaces)? {
            found.field = namespaces.to_owned();
            found.namespaces = if given.iter().any(|one| one == "*") { Vec::new() } else { given };
        } else if found.labels.is_empty()
            && let Some(namespace) = document.take_text("metadata.namespace")?
        {
            (found.namespaces, found.field) = (vec![namespace], "metadata.namespace".to_owned());
        }
        Ok(found)
    }

    /// Returns the selectors, one for each namespace; none for all volumes.
    pub fn selectors(&self) -> Vec<Value> {
        let with = |namespace: &String| {
            let mut labels = self.labels.clone();
            labels.insert(NAMESPACE.to_owned(), namespace.as_str().into());
            Value::from(labels)
        };
        match (self.namespaces.is_empty(), self.labels.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => vec![self.labels.clone().into()],
            (false, _) => self.namespaces.iter().map(with).collect(),
        }
    }

    /// Sets the volumes of a document.
    pub fn set(&self, native: &mut Document, spec: &str) {
        match self.selectors() {
            none if none.is_empty() => native.set(&format!("{spec}.allVolumes"), true.into(), &self.field),
            some => native.set(&format!("{spec}.selectors"), some.into(), &self.field),
        }
    }

    /// Returns one document for each selector, with the namespace in its name if there are several.
    pub fn each(&self, mut native: Document, name: &str, spec: &str) -> Vec<Document> {
        if self.namespaces.len() < 2 {
            self.set(&mut native, spec);
            return vec![native];
        }
        let one = |(namespace, selector): (&String, Value)| {
            let mut one = native.clone();
            one.set("metadata.name", format!("{name}-{namespace}").into(), "metadata.name");
            one.set(&format!("{spec}.selectors"), selector, &self.field);
            one
        };
        self.namespaces.iter().zip(self.selectors()).map(one).collect()
    }
}
