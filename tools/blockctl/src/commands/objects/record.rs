//! Results of a command by object, also after a failure.

use crate::{
    failure::Exit,
    objects::{Kind, Object, ObjectSet},
    output::Context,
};
use blockd_api::List;
use serde_json::{Value, json};

/// Results of the objects in their order.
#[derive(Debug)]
pub struct Record {
    items: Vec<Value>,
    /// Number of finished objects.
    done: usize,
}

impl Record {
    /// Creates a record without finished objects.
    pub fn of(objects: impl Iterator<Item = (Kind, String)>) -> Self {
        let item = |(kind, name)| json!({ "kind": kind, "name": name, "result": "not tried" });
        Self { items: objects.map(item).collect(), done: 0 }
    }

    /// Begins the next object, which fails unless it is done.
    pub fn begin(&mut self) {
        self.items[self.done]["result"] = json!("failed");
    }

    /// Finishes the object, and returns its result for more fields.
    pub fn done(&mut self, result: &str) -> &mut Value {
        self.done += 1;
        self.last()["result"] = json!(result);
        self.last()
    }

    /// Returns the result of the last finished object.
    pub fn last(&mut self) -> &mut Value {
        &mut self.items[self.done - 1]
    }

    /// Writes the document of the command, or as text the parts that the lines of the objects lack.
    pub fn finish(self, context: &Context<'_>, ended: Exit) -> Exit {
        let output = context.output;
        let failure = match ended {
            Ok(status) if output.is_json() => {
                output.document(&List::from(self.items))?;
                return Ok(status);
            }
            Ok(status) => return Ok(status),
            Err(failure) => failure,
        };
        if output.is_json() {
            let mut whole = json!(failure.document());
            (whole["items"], whole["next"]) = (json!(self.items), json!(null));
            output.document(&whole)?;
            return Ok(failure.exit_status());
        }
        let with = |result: &str| {
            let items = self.items.iter().filter(|item| item["result"] == result);
            let names = items
                .filter_map(|item| Some(format!("{}/{}", item["kind"].as_str()?, item["name"].as_str()?)));
            names.collect::<Vec<_>>().join(", ")
        };
        let (failed, left) = (with("failed"), with("not tried"));
        let notes = [
            (!failed.is_empty()).then(|| format!("{failed} failed")),
            (self.done > 0).then(|| "the objects above are done".to_owned()),
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

/// Adds the warnings of an object to its document.
pub fn show_warnings(object: &Object, document: &mut Value) {
    let warnings = warnings(object);
    if !warnings.is_empty() {
        document["warnings"] = json!(warnings);
    }
}

/// Returns the warnings about an object.
pub fn warnings(object: &Object) -> Vec<String> {
    object.warnings.iter().map(ToString::to_string).collect()
}
