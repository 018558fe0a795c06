//! Results of a command by object, also after a failure.

use crate::{
    failure::Exit,
    objects::{Kind, Object, ObjectSet},
    output::Context,
};
use blockd_api::List;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Finished and remaining objects.
#[derive(Debug)]
pub struct Record {
    done: Vec<Value>,
    left: VecDeque<(Kind, String)>,
    /// The first remaining object was begun.
    is_begun: bool,
}

impl Record {
    /// Creates a record without finished objects.
    pub fn of(objects: impl Iterator<Item = (Kind, String)>) -> Self {
        Self { done: Vec::new(), left: objects.collect(), is_begun: false }
    }

    /// Begins the next object.
    pub fn begin(&mut self) {
        self.is_begun = true;
    }

    /// Finishes the object, and returns its result for more fields.
    pub fn done(&mut self, result: &str) -> &mut Value {
        self.is_begun = false;
        let object = self.left.pop_front().map(|(kind, name)| document(kind, &name, result));
        self.done.push(object.unwrap_or_default());
        self.last()
    }

    /// Returns the result of the last object.
    pub fn last(&mut self) -> &mut Value {
        if self.done.is_empty() {
            self.done.push(Value::Null);
        }
        let last = self.done.len() - 1;
        &mut self.done[last]
    }

    /// Writes the document of the command, or as text the parts that the lines of the objects lack.
    pub fn finish(mut self, context: &Context<'_>, ended: Exit) -> Exit {
        let output = context.output;
        let failed = usize::from(self.is_begun).min(self.left.len());
        match ended {
            Ok(status) if output.is_json() => {
                output.document(&List::from(self.done))?;
                Ok(status)
            }
            Err(failure) if output.is_json() => {
                for (index, (kind, name)) in self.left.iter().enumerate() {
                    let result = if index < failed { "failed" } else { "not tried" };
                    self.done.push(document(*kind, name, result));
                }
                let mut whole = json!(failure.document());
                (whole["items"], whole["next"]) = (json!(self.done), json!(null));
                output.document(&whole)?;
                Ok(failure.exit_status())
            }
            Ok(status) => Ok(status),
            Err(failure) => {
                let left = self.left.iter().map(|(kind, name)| format!("{kind}/{name}"));
                let left: Vec<String> = left.collect();
                let mut notes: Vec<String> =
                    left[..failed].iter().map(|object| format!("{object} failed")).collect();
                if !self.done.is_empty() {
                    notes.push("the objects above are done".to_owned());
                }
                if left.len() > failed {
                    notes.push(format!("not tried: {}", left[failed..].join(", ")));
                }
                if !notes.is_empty() {
                    output.note(notes.join("; "));
                }
                Err(failure)
            }
        }
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
            context.output.note(format!("warning: {}: {warning}", object.file));
        }
    }
}

/// Adds the warnings of an object to its document.
pub fn show_warnings(object: &Object, document: &mut Value) {
    let warnings: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
    if !warnings.is_empty() {
        document["warnings"] = json!(warnings);
    }
}

fn document(kind: Kind, name: &str, result: &str) -> Value {
    json!({ "kind": kind, "name": name, "result": result })
}
