//! Results of a command by object, also after a failure in between.

use crate::{commands::Context, failure::Failure, objects::Kind};
use serde_json::{Value, json};
use std::collections::VecDeque;
use uuid::Uuid;

/// Finished and remaining objects.
#[derive(Debug)]
pub struct Record {
    done: Vec<Value>,
    left: VecDeque<(Kind, String)>,
    /// The first of those that are left was begun.
    is_in_hand: bool,
}

impl Record {
    /// Nothing is done yet with these.
    pub fn of(objects: impl Iterator<Item = (Kind, String)>) -> Self {
        Self { done: Vec::new(), left: objects.collect(), is_in_hand: false }
    }

    /// The next one is taken in hand.
    pub fn begin(&mut self) {
        self.is_in_hand = true;
    }

    /// This was done with it.
    pub fn done(&mut self, result: &str, tasks: &[Uuid]) {
        self.is_in_hand = false;
        let Some((kind, name)) = self.left.pop_front() else { return };
        let mut document = document(kind, &name, result);
        if !tasks.is_empty() {
            document["tasks"] = json!(tasks);
        }
        self.done.push(document);
    }

    /// Extends the result of the last object.
    pub fn add(&mut self, more: impl FnOnce(&mut Value)) {
        if let Some(document) = self.done.last_mut() {
            more(document);
        }
    }

    /// Records the states of the last object's tasks.
    pub fn ended(&mut self, states: &[String]) {
        if let Some(document) = self.done.last_mut().filter(|_| !states.is_empty()) {
            document["states"] = json!(states);
        }
    }

    /// Tells how it ended: the one document of the command, or what the lines of text do not say.
    ///
    /// # Errors
    /// That with which it ended, if it is not told yet.
    pub fn finish(mut self, context: &Context<'_>, ended: Result<u8, Failure>) -> Result<u8, Failure> {
        let output = context.output;
        let failure = match ended {
            Ok(status) => {
                if output.is_json() {
                    output.document(&json!({ "objects": self.done }))?;
                }
                return Ok(status);
            }
            Err(failure) => failure,
        };
        if !output.is_json() {
            let mut left: Vec<String> =
                self.left.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
            let failed = left.drain(..usize::from(self.is_in_hand).min(left.len()));
            let mut told: Vec<String> = failed.map(|failed| format!("{failed} failed")).collect();
            if !self.done.is_empty() {
                told.push("what is said above is done".to_owned());
            }
            if !left.is_empty() {
                told.push(format!("not tried: {}", left.join(", ")));
            }
            if !told.is_empty() {
                output.note(told.join("; "));
            }
            return Err(failure);
        }
        for (at, (kind, name)) in self.left.iter().enumerate() {
            let result = if at == 0 && self.is_in_hand { "failed" } else { "not tried" };
            self.done.push(document(*kind, name, result));
        }
        let mut whole = json!(failure.document());
        whole["objects"] = json!(self.done);
        output.document(&whole)?;
        Ok(failure.exit_status())
    }
}

fn document(kind: Kind, name: &str, result: &str) -> Value {
    json!({ "kind": kind.as_str(), "name": name, "result": result })
}
