//! Secrets that documents of the same call name. They stay in memory.

use super::document::{Document, Problem};
use crate::secrets::read_file;
use base64::{Engine, engine::general_purpose::STANDARD};
use blockd_api::Secret;
use serde_json::{Map, Value};
use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Name of stdin in messages.
pub const STDIN: &str = "stdin";

/// Decodes base64 with line ends, as text.
pub fn decode_base64(text: &str) -> Result<String, String> {
    let packed: String = text.split_whitespace().collect();
    let bytes = STANDARD.decode(packed).map_err(|_| "base64 is expected".to_owned())?;
    String::from_utf8(bytes).map_err(|_| "the decoded value is not text".to_owned())
}

/// Document of a secret.
#[derive(Debug)]
pub struct SecretDocument {
    name: String,
    file: String,
    line: usize,
    warnings: Vec<Problem>,
    /// Values, or the errors of their encoding.
    values: BTreeMap<String, Result<Secret, String>>,
    is_used: Cell<bool>,
}

impl SecretDocument {
    /// Takes a secret.
    pub fn take(mut document: Document) -> Result<Self, Problem> {
        let name = document.name()?;
        let mut values = BTreeMap::new();
        // Plain values win over those in base64.
        for field in ["data", "stringData"] {
            for (key, value) in
                document.take_as::<Map<String, Value>>(field, "fields are expected")?.into_iter().flatten()
            {
                let Value::String(text) = value else {
                    // YAML has changed the spelling of a plain number.
                    let message = "text is expected: write it in quotes";
                    return Err(document.problem(&format!("{field}.{key}"), message));
                };
                let value = match field {
                    "data" => decode_base64(&text).map_err(|error| {
                        let problem = document.problem(&format!("{field}.{key}"), &error);
                        format!("Secret/{name} in {}: {problem}", document.source.file)
                    }),
                    _ => Ok(text),
                };
                values.insert(key, value.map(Secret::new));
            }
        }
        document.remove("type");
        let (line, file, is_used) = (document.line, document.source.file.clone(), Cell::default());
        let warnings = document.close(&format!("Secret/{name}"));
        Ok(Self { name, file, line, warnings, values, is_used })
    }
}

/// Secrets of the documents of one call.
#[derive(Debug, Default)]
pub struct SecretSet(BTreeMap<String, SecretDocument>);

/// Keys of a secret.
#[derive(Debug)]
pub enum SecretKeys<'a> {
    /// Document of the same call.
    Document(&'a SecretDocument),
    /// Directory with a file for each key.
    Dir(PathBuf),
}

impl SecretSet {
    /// Adds a secret.
    ///
    /// # Errors
    /// Another one has its name.
    pub fn add(&mut self, secret: SecretDocument) -> Result<(), Problem> {
        if let Some(other) = self.0.get(&secret.name) {
            let message = format!("Secret/{} is in {}, line {}, already", other.name, other.file, other.line);
            return Err(Problem { line: secret.line, path: "metadata.name".to_owned(), message });
        }
        self.0.insert(secret.name.clone(), secret);
        Ok(())
    }

    /// Returns the keys of a secret: a document of the call, or a directory.
    ///
    /// # Errors
    /// There is neither.
    pub fn keys(&self, name: &str, dir: &Path) -> Result<SecretKeys<'_>, String> {
        if let Some(secret) = self.0.get(name) {
            secret.is_used.set(true);
            return Ok(SecretKeys::Document(secret));
        }
        let path = super::values::absolute(dir, Path::new(name));
        if path.is_dir() {
            return Ok(SecretKeys::Dir(path));
        }
        Err(format!(
            "there is no Secret/{name} in this call and no directory {} with a file for each key",
            path.display()
        ))
    }

    /// Returns the warnings about secrets, and one for each that no document names.
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, SecretDocument { file, line, warnings, is_used, .. }) in &self.0 {
            found.extend(warnings.iter().map(|warning| format!("warning: {file}: {warning}")));
            if !is_used.get() {
                let path = if file == STDIN { "-" } else { file };
                found.push(format!(
                    "warning: {file}: line {line}: Secret/{name} is not stored: apply it in the same call as its location: `blockctl apply -f {path} -f LOCATION`"
                ));
            }
        }
        found
    }
}

impl SecretKeys<'_> {
    /// Returns the value of a key, which is secret or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, key: &str, is_secret: bool) -> Result<Option<Secret>, String> {
        match self {
            Self::Document(secret) => secret.values.get(key).cloned().transpose(),
            Self::Dir(dir) => {
                let path = dir.join(key);
                let what = if is_secret { "secret" } else { "key of a secret" };
                let read = || read_file(what, &path).map_err(|error| error.to_string());
                path.is_file().then(read).transpose()
            }
        }
    }
}
