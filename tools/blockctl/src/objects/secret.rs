//! Secrets that documents of the same call name. They stay in memory.

use super::{
    document::{Document, Problem},
    foreign::name_of,
};
use crate::secrets::read_file;
use base64::{Engine, engine::general_purpose::STANDARD};
use blockd_api::Secret;
use serde_json::{Map, Value};
use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Decodes base64 with line ends, as text.
pub fn decode_base64(text: &str) -> Result<String, String> {
    let packed: String = text.split_whitespace().collect();
    let bytes = STANDARD.decode(packed).map_err(|_| "base64 is expected".to_owned())?;
    String::from_utf8(bytes).map_err(|_| "the decoded value is not text".to_owned())
}

/// Document of a secret.
#[derive(Debug)]
pub struct SecretDocument {
    /// Name.
    pub name: String,
    /// Warnings about fields.
    pub warnings: Vec<Problem>,
    line: usize,
    /// Plain values, and values in base64.
    values: BTreeMap<String, Secret>,
    encoded: BTreeMap<String, Secret>,
}

impl SecretDocument {
    /// Takes a secret.
    pub fn take(mut document: Document) -> Result<Self, Problem> {
        let name = name_of(&document)?;
        let mut take =
            |field: &str| -> Result<BTreeMap<String, Secret>, Problem> {
                if !document.has(field) {
                    return Ok(BTreeMap::new());
                }
                let values = document.take::<Map<String, Value>>(field)?.into_iter();
                values
                    .map(|(key, value)| match value {
                        Value::String(text) => Ok((key, Secret::new(text))),
                        // YAML has changed the spelling of a plain number.
                        _ => Err(document
                            .problem(&format!("{field}.{key}"), "text is expected: write it in quotes")),
                    })
                    .collect()
            };
        let (values, encoded) = (take("stringData")?, take("data")?);
        for field in ["kind", "apiVersion", "metadata.name", "type"] {
            document.remove(field);
        }
        document.ignore_rest();
        let line = document.line;
        let warnings = document.finish(&format!("Secret/{name}"));
        Ok(Self { name, warnings, line, values, encoded })
    }

    fn get(&self, key: &str) -> Result<Option<Secret>, String> {
        if let Some(value) = self.values.get(key) {
            return Ok(Some(value.clone()));
        }
        let Some(encoded) = self.encoded.get(key) else { return Ok(None) };
        let decoded = decode_base64(encoded.expose());
        decoded
            .map(|text| Some(Secret::new(text)))
            .map_err(|error| format!("Secret/{}: data.{key}: {error}", self.name))
    }
}

/// Secrets of the documents of one call.
#[derive(Debug, Default)]
pub struct SecretSet(BTreeMap<String, (SecretDocument, String, Cell<bool>)>);

/// Keys of a secret.
#[derive(Debug)]
pub enum SecretKeys<'a> {
    /// Document of the same call.
    Document(&'a SecretDocument),
    /// Directory with a file for each key.
    Dir(PathBuf),
}

impl SecretSet {
    /// Adds a secret of a file.
    ///
    /// # Errors
    /// Another one has its name.
    pub fn add(&mut self, secret: SecretDocument, file: &str) -> Result<(), Problem> {
        if let Some((other, at, _)) = self.0.get(&secret.name) {
            let message = format!("Secret/{} is in {at}, line {}, already", secret.name, other.line);
            return Err(Problem { line: secret.line, path: "metadata.name".to_owned(), message });
        }
        self.0.insert(secret.name.clone(), (secret, file.to_owned(), Cell::new(false)));
        Ok(())
    }

    /// Returns the keys of a secret: a document of the call, or a directory.
    ///
    /// # Errors
    /// There is neither.
    pub fn keys(&self, name: &str, dir: &Path) -> Result<SecretKeys<'_>, String> {
        if let Some((secret, _, used)) = self.0.get(name) {
            used.set(true);
            return Ok(SecretKeys::Document(secret));
        }
        let path = super::values::absolute(dir, Path::new(name));
        if path.is_dir() {
            return Ok(SecretKeys::Dir(path));
        }
        Err(format!(
            "secret {name} is missing: apply its document in the same call (-f SECRET -f LOCATION), or make the directory {} with a file for each key",
            path.display()
        ))
    }

    /// Returns the warnings about secrets, and a note for each that no document names.
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, (secret, file, used)) in &self.0 {
            found.extend(secret.warnings.iter().map(|warning| format!("warning: {file}: {warning}")));
            if !used.get() {
                found.push(format!(
                    "note: {file}: line {}: Secret/{name} is not stored: only locations of the same call use it",
                    secret.line
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
            Self::Document(secret) => secret.get(key),
            Self::Dir(dir) => {
                let path = dir.join(key);
                let what = if is_secret { "secret" } else { "key of a secret" };
                let read = || read_file(what, &path).map(Some).map_err(|error| error.to_string());
                if path.is_file() { read() } else { Ok(None) }
            }
        }
    }
}
