//! Results of a command by object, also after a failure.

use crate::{
    failure::{Exit, FailureBody},
    objects::{Kind, Object, ObjectSet},
    output::Context,
};
use blockd_api::{List, VolumeName};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// Result of an object that has not been tried.
const NOT_TRIED: &str = "not tried";
/// Result of an object that failed.
const FAILED: &str = "failed";

/// Results of `apply` and `delete`, and the error of the first object that failed.
#[derive(Serialize, JsonSchema)]
pub struct ObjectResults {
    #[serde(flatten)]
    list: List<ObjectResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureBody>,
}

/// Result of an object.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectResult {
    kind: Kind,
    name: String,
    /// Such as `created`, `configured`, `unchanged`, `started`, `deleted`, `failed` or `not tried`.
    result: String,
    /// Warnings about fields of the file, and about what is not changed or deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Started tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub task_ids: Vec<Uuid>,
    /// States of the tasks at their end, with `--wait`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<String>,
    /// Location of deleted backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_location: Option<String>,
    /// Deleted local snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<String>,
    /// Volumes of a deleted restore or clone; they stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Existing volumes that a restore keeps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_volumes: Vec<VolumeName>,
    /// Object that must be complete first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// Results of the objects in their order.
#[derive(Debug)]
pub struct Record {
    items: Vec<ObjectResult>,
    /// Number of finished objects.
    done: usize,
}

impl Record {
    /// Creates a record without finished objects.
    pub fn of(objects: impl Iterator<Item = (Kind, String)>) -> Self {
        let item = |(kind, name)| ObjectResult {
            kind,
            name,
            result: NOT_TRIED.to_owned(),
            warnings: Vec::new(),
            task_ids: Vec::new(),
            states: Vec::new(),
            backup_location: None,
            snapshots: Vec::new(),
            volumes: Vec::new(),
            kept_volumes: Vec::new(),
            waits_for: None,
        };
        Self { items: objects.map(item).collect(), done: 0 }
    }

    /// Begins the next object, which fails unless it is done.
    pub fn begin(&mut self) {
        FAILED.clone_into(&mut self.items[self.done].result);
    }

    /// Finishes the object, and returns its result for more fields.
    pub fn done(&mut self, result: &str) -> &mut ObjectResult {
        self.done += 1;
        result.clone_into(&mut self.last().result);
        self.last()
    }

    /// Returns the result of the last finished object.
    pub fn last(&mut self) -> &mut ObjectResult {
        &mut self.items[self.done - 1]
    }

    /// Writes the document of the command, or as text the parts that the lines of the objects lack.
    pub fn finish(self, context: &Context<'_>, ended: Exit) -> Exit {
        let output = context.output;
        if output.is_json() {
            let (status, error) = match ended {
                Ok(status) => (status, None),
                Err(failure) => (failure.exit_status(), Some(failure.document().error)),
            };
            output.document(&ObjectResults { list: List::from(self.items), error })?;
            return Ok(status);
        }
        let failure = match ended {
            Ok(status) => return Ok(status),
            Err(failure) => failure,
        };
        let with = |result: &str| {
            let items = self.items.iter().filter(|item| item.result == result);
            items.map(|item| format!("{}/{}", item.kind, item.name)).collect::<Vec<_>>().join(", ")
        };
        let (failed, left) = (with(FAILED), with(NOT_TRIED));
        let notes = [
            (!failed.is_empty()).then(|| format!("{failed} failed")),
            (!left.is_empty()).then(|| format!("not tried: {left}")),
        ];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        if !notes.is_empty() {
            output.note(notes.join("; "));
        }
        Err(failure)
    }
}

/// Prints the warnings of objects as text, and notes about other documents.
pub fn warn(context: &Context<'_>, read: &ObjectSet) {
    for note in &read.notes {
        context.output.note(note);
    }
    if context.output.is_json() {
        return;
    }
    for object in &read.objects {
        for warning in &object.warnings {
            context.output.note(format!("warning: {}: {warning}", object.document.source.file));
        }
    }
}

/// Returns the warnings about an object.
pub fn warnings(object: &Object) -> Vec<String> {
    object.warnings.iter().map(ToString::to_string).collect()
}
