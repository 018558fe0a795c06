//! Validation of documents against the schemas that `blockctl schema` prints.

use boon::{Compiler, Draft, Schemas};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    process::Command,
    sync::{LazyLock, Mutex},
};

/// Schemas by the words of a command line.
static KNOWN: LazyLock<Mutex<HashMap<Vec<String>, Value>>> = LazyLock::new(Mutex::default);
/// Maximum number of words of a command.
const MAX_WORDS: usize = 4;

/// Refuses fields that a schema does not name: documents of tests have none of a later version.
fn close(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Object(fields) => {
            let has_fields = fields.contains_key("properties");
            for (name, field) in fields.iter_mut() {
                let is_alternative = ["allOf", "anyOf", "oneOf"].contains(&name.as_str());
                // Alternatives of an object with fields of its own describe its other fields.
                close(field, is_alternative && has_fields);
            }
            if has_fields && !is_part {
                fields.insert("unevaluatedProperties".to_owned(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, is_part)),
        _ => {}
    }
}

/// Returns the words of a command line up to its first own option.
fn command_of<'a>(args: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let (mut words, mut args) = (Vec::new(), args.iter());
    while let Some(arg) = args.next() {
        match *arg {
            "-j" | "--json" | "--ssl" => {}
            "--socket" | "--endpoint" | "--context" | "--ca" | "--cert" | "--key" => drop(args.next()),
            option if option.starts_with('-') => break,
            word => words.push(word),
        }
    }
    words.into_iter()
}

/// Checks a document of a command line.
///
/// # Panics
/// The document violates the schema of the command.
pub fn check(mut blockctl: Command, args: &[&str], document: &Value) {
    let words: Vec<String> = command_of(args).take(MAX_WORDS).map(ToOwned::to_owned).collect();
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let schema = known.entry(words.clone()).or_insert_with(|| {
        let output = blockctl.arg("schema").arg("--").args(&words).output().expect("blockctl schema");
        let mut schema = match output.status.success() {
            true => serde_json::from_slice(&output.stdout).expect("a schema"),
            // A command line that blockctl refuses.
            false => json!({ "required": ["schemaVersion", "error"] }),
        };
        close(&mut schema, false);
        schema
    });
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource("blockctl.json", schema.clone()).expect("a schema");
    let index = compiler.compile("blockctl.json", &mut schemas).expect("a valid schema");
    if let Err(error) = schemas.validate(document, index) {
        panic!("the document of {words:?} violates its schema: {error:#}\n{document:#}");
    }
}
