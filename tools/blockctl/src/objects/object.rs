//! Objects, and their documents.

use super::{
    backup::{Backup, RECLAIM_POLICY, ReclaimPolicy, SCHEDULE_RECLAIM_POLICY},
    document::{Document, Problem},
    drill::DrillSpec,
    foreign::{EXISTING_POLICY, UPDATE},
    hook::Hook,
    kind::{API_VERSION, Kind},
    location::Location,
    policy::Rules,
    schedule::ScheduleSpec,
    secret::SecretSet,
    values::{NAMESPACE, view},
    volumes::{Restore, VolumeClone},
};
use blockd_api::{ApiError, ErrorCode, Labels, ObjectName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt};

/// Beginning of the labels that are annotations of their object.
const ANNOTATION: &str = "annotation/";

/// Content of an object by kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    Location(Box<Location>),
    Policy(Rules),
    Rule(Hook),
    Snapshot(Box<Backup>),
    Backup(Box<Backup>),
    Schedule(Box<ScheduleSpec>),
    /// Schedule of restore drills.
    Drill(Box<DrillSpec>),
    Restore(Restore),
    Clone(VolumeClone),
}

/// Object of a file.
#[derive(Debug)]
pub struct Object {
    pub kind: Kind,
    pub name: ObjectName,
    /// File, lines and paths of the fields, for messages.
    pub document: Document,
    /// Field that selects the volumes.
    pub volumes_field: String,
    /// Warnings about fields.
    pub warnings: Vec<Problem>,
    /// Error of a field that selects fewer volumes and is not supported, if they are lost.
    pub wider: Option<Problem>,
    /// An equal object of another document is the same one.
    pub is_derived: bool,
    /// Labels from the metadata, with its namespace and annotations, and reclaim policies.
    pub labels: Labels,
    pub body: Body,
}

impl Object {
    /// Returns the document with all defaults and without secrets: equal objects have equal documents.
    pub fn view(&self) -> Value {
        document(self.kind, self.name.as_str(), &self.labels, &view(&self.body))
    }

    /// Returns the error with the file, line and field of an object that this one names, which is missing or
    /// is a location that fails.
    pub fn locate(&self, mut error: ApiError) -> ApiError {
        let template = self.kind.spec();
        // Settings to check are those of the location, which have no field here.
        let is_of_location = self.kind != Kind::BackupLocation && !error.settings.is_empty();
        if is_of_location {
            error.settings.clear();
            let field = self.document.written(&format!("{template}.backupLocation"));
            error.hint = error.next_action(&[format!("the location in `{field}`")]);
        }
        let fields: &[&str] = match error.code {
            _ if is_of_location => &["backupLocation"],
            ErrorCode::CredentialNotFound => &["backupLocation"],
            ErrorCode::RuleNotFound => &["preExecRule", "postExecRule"],
            ErrorCode::CloudsnapNotFound => &["backupName", "scheduleName", "cloudSnapshotId"],
            ErrorCode::SnapshotNotFound => &["snapshot"],
            _ => &[],
        };
        let fields = fields.iter().map(|field| format!("{template}.{field}")).collect::<Vec<_>>();
        let field = match error.code {
            ErrorCode::PolicyNotFound => Some("spec.schedulePolicyName"),
            ErrorCode::VolumeNotFound => Some(self.volumes_field.as_str()),
            _ => fields
                .iter()
                .find(|path| self.document.is_written(path))
                .or(fields.first())
                .map(String::as_str),
        };
        if let Some(field) = field {
            error.message = self.document.at(field, error.message);
        }
        error
    }

    /// Returns the setting of its file with which a restore replaces existing volumes.
    pub fn replacing(&self) -> String {
        let field = self.document.written("spec.replacePolicy");
        let field = field.rsplit('.').next().unwrap_or_default();
        format!("{field}: {}", if field == EXISTING_POLICY { UPDATE } else { "Delete" })
    }

    /// Returns true for another object of the same kind and name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Returns an object as a document. Its labels have the annotations, too.
pub fn document(kind: Kind, name: &str, labels: &Labels, body: &Value) -> Value {
    let mut metadata = json!({ "name": name });
    for (key, value) in labels.as_map() {
        match key.strip_prefix(ANNOTATION) {
            Some(annotation) => metadata["annotations"][annotation] = json!(value),
            None if [RECLAIM_POLICY, SCHEDULE_RECLAIM_POLICY].contains(&key.as_str()) => {}
            None => metadata["labels"][key] = json!(value),
        }
    }
    json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata, kind.field(): body })
}

/// Returns a document as YAML.
pub fn yaml(document: &Value) -> String {
    // JSON is YAML as well; the writer fails on no value of JSON.
    serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string())
}

/// Metadata.
#[derive(Deserialize)]
struct Metadata {
    name: ObjectName,
    /// Clusters add fields without a meaning here.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Takes the labels of an object: those of the metadata, its namespace and annotations, and reclaim policies.
fn take_labels(
    document: &mut Document,
    metadata: &mut Map<String, Value>,
    policies: impl IntoIterator<Item = (&'static str, Option<ReclaimPolicy>)>,
) -> Result<Labels, Problem> {
    let mut take = |field: &str| -> Result<BTreeMap<String, String>, Problem> {
        let given = metadata.remove(field).map(serde_json::from_value).transpose();
        let invalid =
            |error: serde_json::Error| document.problem(&format!("metadata.{field}"), error.to_string());
        Ok(given.map_err(invalid)?.unwrap_or_default())
    };
    let (mut labels, annotations) = (take("labels")?, take("annotations")?);
    if let Some(Value::String(namespace)) = metadata.remove("namespace") {
        labels.entry(NAMESPACE.to_owned()).or_insert(namespace);
    }
    let given = policies.into_iter().filter_map(|(key, policy)| Some((key.to_owned(), policy?.to_string())));
    labels.extend(given);
    let mut labels =
        Labels::try_from(labels).map_err(|error| document.problem("metadata.labels", error.to_string()))?;
    for (key, value) in annotations {
        let one = Labels::try_from(BTreeMap::from([(format!("{ANNOTATION}{key}"), value)]));
        match one.and_then(|one| Labels::try_from(BTreeMap::from(labels.clone().overlaid_by(&one)))) {
            Ok(all) => labels = all,
            Err(error) => document.warn(&format!("metadata.annotations.{key}"), &format!("ignored: {error}")),
        }
    }
    Ok(labels)
}

/// Warns about reclaim policies that have no meaning, and removes them.
fn ignore_reclaim_policy(document: &mut Document, body: &mut Body) {
    let (policies, reason): (Vec<_>, _) = match body {
        Body::Snapshot(backup) => (
            vec![("spec.reclaimPolicy", backup.reclaim_policy.take())],
            "a local snapshot is deleted with its object",
        ),
        Body::Schedule(schedule) if schedule.is_local() && schedule.backup().backup_location.is_empty() => {
            let own = schedule.reclaim_policy.take();
            let of_backups = schedule.backup_mut().reclaim_policy.take();
            let policies =
                vec![("spec.reclaimPolicy", own), ("spec.template.spec.reclaimPolicy", of_backups)];
            (policies, "local snapshots outlive their schedule")
        }
        _ => return,
    };
    for (path, _) in policies.into_iter().filter(|(_, policy)| policy.is_some()) {
        document.warn(path, &format!("ignored: {reason}"));
    }
}

/// Warns about the effect of a time to live that is not that of a backup.
fn warn_about_ttl(document: &mut Document, body: &mut Body) {
    match body {
        Body::Snapshot(backup) if backup.ttl.is_some() => {
            backup.ttl = None;
            document.warn("spec.ttl", "ignored: local snapshots do not expire");
        }
        Body::Schedule(schedule) => {
            if let Some(warning) = schedule.ttl_warning.take() {
                document.warn("spec.template.spec.ttl", &warning);
            }
        }
        _ => {}
    }
}

/// Takes an object from its document.
pub fn object(mut document: Document, secrets: &SecretSet) -> Result<Object, Problem> {
    let kind = document.take::<String>("kind")?;
    let kind: Kind = kind.parse().map_err(|error: String| document.problem("kind", error))?;
    document.is_foreign = document.take::<String>("apiVersion")? != API_VERSION;
    let Metadata { name, mut rest } = document.take("metadata")?;
    let (field, text) = (kind.field(), name.as_str());
    let selecting = ["selectors", "allVolumes", "group", "volume", "sourceNamespace", "sourceVolume"]
        .map(|name| format!("{}.{name}", kind.spec()));
    let selecting = selecting.iter().find(|path| document.get(path).is_some());
    let selecting = selecting.map_or(kind.spec(), String::as_str);
    let volumes_field = selecting.to_owned();
    let mut body = match kind {
        Kind::BackupLocation => Body::Location(Box::new(Location::take(&mut document, secrets)?)),
        Kind::SchedulePolicy => Body::Policy(document.spec(field, text)?),
        Kind::Rule => Body::Rule(document.spec(field, text)?),
        Kind::VolumeSnapshot => Body::Snapshot(Box::new(document.spec(field, text)?)),
        Kind::VolumeBackup => Body::Backup(Box::new(document.spec(field, text)?)),
        Kind::VolumeBackupSchedule => Body::Schedule(Box::new(document.spec(field, text)?)),
        Kind::RestoreDrill => Body::Drill(Box::new(document.spec(field, text)?)),
        Kind::VolumeRestore => Body::Restore(document.spec(field, text)?),
        Kind::VolumeClone => Body::Clone(document.spec(field, text)?),
    };
    ignore_reclaim_policy(&mut document, &mut body);
    warn_about_ttl(&mut document, &mut body);
    let [own, of_backups] = match &body {
        Body::Backup(backup) => [None, backup.reclaim_policy],
        Body::Schedule(schedule) => schedule.reclaim_policies(),
        _ => [None, None],
    };
    let policies = [(SCHEDULE_RECLAIM_POLICY, own), (RECLAIM_POLICY, of_backups)];
    let labels = match kind.has_labels() {
        true => take_labels(&mut document, &mut rest, policies)?,
        false => Labels::default(),
    };
    match &mut body {
        Body::Backup(backup) => backup.labels = labels.clone(),
        Body::Schedule(schedule) => schedule.backup_mut().labels = labels.clone(),
        Body::Drill(drill) => drill.labels = labels.clone(),
        _ => {}
    }
    rest.keys().for_each(|key| document.ignore(&format!("metadata.{key}")));
    if document.is_foreign {
        document.ignore_rest();
    }
    // A cluster reports its state in `status`.
    if let Some(field) = document.rest().find(|field| *field != "status") {
        return Err(document.problem(field, "unknown field"));
    }
    let (is_derived, wider) = (document.is_derived, document.wider.take());
    let positions = document.positions();
    let warnings = document.finish(&format!("{kind}/{name}"));
    Ok(Object { kind, name, document: positions, volumes_field, warnings, wider, is_derived, labels, body })
}
