//! Documents of other systems: Stork, KubeDB and Velero.
//!
//! Each becomes documents of our kinds. A namespace becomes the label `namespace` of volumes.

mod kubedb;
mod rules;
mod stork;
mod velero;

pub use rules::{ForeignRule, join};
pub use velero::parse_ttl;

use super::{
    API_VERSION, Kind,
    document::{Document, Problem},
    secret::SecretDocument,
};
use serde_json::{Map, Value};

/// Label of volumes that a namespace selects.
pub const NAMESPACE: &str = "namespace";
/// API groups of foreign documents; their versions have the same fields.
const GROUPS: [&str; 6] = [
    stork::GROUP,
    kubedb::GROUP,
    velero::GROUP,
    "volumesnapshot.external-storage.k8s.io",
    "snapshot.storage.k8s.io",
    // Secrets.
    "v1",
];

/// Document in our terms.
#[derive(Debug)]
pub enum Converted {
    /// Objects.
    Objects(Vec<Document>),
    /// Rule, whose role depends on the objects that name it.
    Rule(Box<ForeignRule>),
    /// Secret.
    Secret(Box<SecretDocument>),
}

/// Converts a document; one of ours stays as it is.
pub fn convert(mut document: Document) -> Result<Converted, Problem> {
    let text =
        |document: &Document, path: &str| document.get(path).and_then(Value::as_str).map(str::to_owned);
    let kind = text(&document, "kind").unwrap_or_default();
    let version = text(&document, "apiVersion").unwrap_or_default();
    let group = version.split_once('/').map_or(version.as_str(), |(group, _)| group);
    let is_ours = version == API_VERSION;
    // The storage section of KubeDB in a location.
    let is_storage = group == kubedb::GROUP && kind == "BackupLocation";
    let converter: Converter = match (group, kind.as_str()) {
        ("v1", "Secret") => return Ok(Converted::Secret(Box::new(SecretDocument::take(document)?))),
        (stork::GROUP, "Rule") if rules::is_foreign(&document) => {
            return Ok(Converted::Rule(Box::new(ForeignRule::take(document)?)));
        }
        (kubedb::GROUP, "Snapshot") => kubedb::snapshot,
        _ if is_storage => kubedb::location,
        (velero::GROUP, "Backup") => velero::backup,
        (velero::GROUP, "Schedule") => velero::schedule,
        (velero::GROUP, "Restore") => velero::restore,
        (velero::GROUP, "BackupStorageLocation") => velero::location,
        _ if is_ours => return Ok(Converted::Objects(vec![document])),
        (group, "VolumeSnapshot") if GROUPS.contains(&group) => stork::volume_snapshot,
        (stork::GROUP, kind) => match stork::converter(kind) {
            Some(converter) => converter,
            None => return Ok(Converted::Objects(vec![document])),
        },
        _ if GROUPS.contains(&group) => return Ok(Converted::Objects(vec![document])),
        _ => {
            // An unknown kind is the first error.
            kind.parse::<Kind>().map_err(|error| document.problem("kind", error))?;
            if !document.has("apiVersion") {
                return Err(document.problem("apiVersion", "missing"));
            }
            let message = format!("unknown version {version:?}: write {API_VERSION}");
            return Err(document.problem("apiVersion", message));
        }
    };
    let name = name_of(&document)?;
    let mut natives = converter(&mut document, &name)?;
    document.remove("kind");
    document.remove("apiVersion");
    document.remove("metadata.name");
    document.ignore_rest();
    if let Some(first) = natives.first_mut() {
        first.inherited.extend(document.finish(&format!("{kind}/{name}")));
    }
    Ok(Converted::Objects(natives))
}

/// Conversion of a document with a name. The fields that it leaves are ignored.
type Converter = fn(&mut Document, &str) -> Result<Vec<Document>, Problem>;

/// Returns the name of a document.
pub fn name_of(document: &Document) -> Result<String, Problem> {
    if !document.has("metadata") {
        return Err(document.problem("metadata", "missing"));
    }
    let name = document.get("metadata.name").and_then(Value::as_str);
    name.map(str::to_owned).ok_or_else(|| document.problem("metadata", "missing field `name`"))
}

/// Begins a document of ours.
fn begin(document: &Document, kind: Kind, name: &str) -> Document {
    let mut native = document.emptied();
    native.set("apiVersion", API_VERSION.into(), "apiVersion");
    native.set("kind", kind.to_string().into(), "kind");
    native.set("metadata.name", name.into(), "metadata.name");
    native
}

/// Moves labels and a namespace to those of a backup.
fn take_metadata(document: &mut Document, native: &mut Document, namespace: Option<Value>) {
    document.move_to(native, "metadata.labels", "metadata.labels");
    if let Some(namespace) = namespace {
        document.remove("metadata.namespace");
        native.set("metadata.namespace", namespace, "metadata.namespace");
    }
}

/// Volumes that a document selects: those with all labels, in any of the namespaces.
struct Selection {
    namespaces: Vec<String>,
    labels: Map<String, Value>,
    /// Field for messages.
    field: String,
}

impl Selection {
    /// Takes the namespaces and labels; without both, the namespace of the document.
    fn take(document: &mut Document, namespaces: &str, labels: &str) -> Result<Self, Problem> {
        let mut found = Self { namespaces: Vec::new(), labels: Map::new(), field: namespaces.to_owned() };
        match document.remove(labels) {
            None => {}
            Some(Value::Object(fields)) => {
                found.labels = fields;
                found.field = labels.to_owned();
            }
            Some(_) => return Err(document.problem(labels, "labels are expected")),
        }
        if let Some(value) = document.remove(namespaces) {
            let Value::Array(items) = value else {
                return Err(document.problem(namespaces, "a list is expected"));
            };
            found.field = namespaces.to_owned();
            let names = || items.iter().filter_map(Value::as_str).map(str::to_owned);
            let is_all = names().any(|one| one == "*");
            found.namespaces = names().filter(|_| !is_all).collect();
        } else if found.labels.is_empty()
            && let Some(namespace) = document.take_text("metadata.namespace")?
        {
            found.namespaces = vec![namespace];
            found.field = "metadata.namespace".to_owned();
        }
        Ok(found)
    }

    /// Returns the selectors, one for each namespace; none for all volumes.
    fn selectors(&self) -> Vec<Value> {
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
    fn set(&self, native: &mut Document, spec: &str) {
        match self.selectors() {
            none if none.is_empty() => native.set(&format!("{spec}.allVolumes"), true.into(), &self.field),
            some => native.set(&format!("{spec}.selectors"), some.into(), &self.field),
        }
    }

    /// Returns one document for each selector, with the namespace in its name if there are several.
    fn each(&self, native: &Document, name: &str, spec: &str) -> Vec<Document> {
        let mut natives = Vec::new();
        if self.namespaces.len() < 2 {
            let mut one = native.clone();
            self.set(&mut one, spec);
            return vec![one];
        }
        for (index, selector) in self.selectors().into_iter().enumerate() {
            let mut one = native.clone();
            let name = format!("{name}-{}", self.namespaces[index]);
            one.set("metadata.name", name.into(), "metadata.name");
            one.set(&format!("{spec}.selectors"), selector, &self.field);
            natives.push(one);
        }
        natives
    }
}
