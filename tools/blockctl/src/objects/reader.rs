//! Files of objects.

use super::{
    document::{Document, Problem, Source, documents},
    foreign::{Converted, ForeignRule, convert, join},
    object::{Body, Object, object},
    secret::{STDIN, SecretSet},
};
use crate::failure::Failure;
use blockd_api::VolumeName;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    iter,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Parts of messages, and the next action.
const ADVICE: [(&str, &str); 10] = [
    ("invalid YAML", "correct this line or the one before: fields are indented with spaces"),
    ("base64 is expected", "encode the value with `base64 -w0`, or write it in `stringData`"),
    (
        "there is no Secret/",
        "apply the secret in the same call (`-f SECRET -f LOCATION`), or make the directory",
    ),
    ("expected a whole number", "write a number without quotes"),
    ("expected a boolean", "write `true` or `false` without quotes"),
    ("expected a string", "write the value in quotes"),
    ("unknown kind `List`", "write its items as documents, separated by `---`"),
    (" already", "give one of the objects another name, or remove it"),
    ("unknown kind", "`apiVersion` and `kind` are those of blockd, Stork, KubeDB or Velero"),
    ("no objects", "write documents with `apiVersion`, `kind` and `metadata.name`"),
];
/// Next action after another message.
const OTHER_ADVICE: &str = "correct the field; `blockctl schema get` describes those of each kind";
/// Ends of the names of files in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Objects of the files of a call, each after those that it depends on.
#[derive(Debug, Default)]
pub struct ObjectSet {
    /// Objects.
    pub objects: Vec<Object>,
    /// Warnings and notes about other documents.
    pub notes: Vec<String>,
}

/// Documents of all files.
#[derive(Default)]
pub(super) struct Reader {
    documents: Vec<Document>,
    rules: Vec<ForeignRule>,
    secrets: SecretSet,
    /// Problems by file.
    problems: BTreeMap<String, Vec<Problem>>,
}

impl Reader {
    /// Adds the documents of a text.
    pub(super) fn add(&mut self, text: &str, file: &str, dir: &Path) {
        let source = Arc::new(Source { file: file.to_owned(), dir: dir.to_owned() });
        let problem = || Problem { line: 1, path: String::new(), message: "no objects".to_owned() };
        let found = match documents(text, &source) {
            Ok(found) if found.is_empty() => return self.fail(file, problem()),
            Ok(found) => found,
            Err(problem) => return self.fail(file, problem),
        };
        for document in found {
            match convert(document) {
                Ok(Converted::Objects(natives)) => self.documents.extend(natives),
                Ok(Converted::Rule(rule)) => self.rules.push(*rule),
                Ok(Converted::Secret(secret)) => {
                    self.secrets.add(*secret).unwrap_or_else(|problem| self.fail(file, problem));
                }
                Err(problem) => self.fail(file, problem),
            }
        }
    }

    fn fail(&mut self, file: &str, problem: Problem) {
        self.problems.entry(file.to_owned()).or_default().push(problem);
    }

    /// Returns the objects.
    ///
    /// # Errors
    /// The problems with the files.
    pub(super) fn finish(mut self) -> Result<ObjectSet, BTreeMap<String, Vec<Problem>>> {
        let mut objects: Vec<Object> = Vec::new();
        for document in join(std::mem::take(&mut self.rules), std::mem::take(&mut self.documents)) {
            let file = document.source.file.clone();
            let object = match object(document, &self.secrets) {
                Ok(object) => object,
                Err(problem) => {
                    self.fail(&file, problem);
                    continue;
                }
            };
            match objects.iter().find(|other| other.is_same(&object)) {
                Some(other) if other.is_derived && object.is_derived && other.view() == object.view() => {
                    continue;
                }
                Some(other) => {
                    let of = &other.document.source.file;
                    let at = if *of == file { String::new() } else { format!("{of}, ") };
                    let message = format!("{object} is in {at}line {} already", other.document.line);
                    let path = "metadata.name".to_owned();
                    self.fail(&file, Problem { line: object.document.line, path, message });
                }
                None => {}
            }
            if let Some(problem) = second_default(&object, &objects) {
                self.fail(&file, problem);
            }
            objects.push(object);
        }
        if let Err((file, problem)) = sort(&mut objects) {
            self.fail(&file, problem);
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        Ok(ObjectSet { objects, notes: self.secrets.warnings() })
    }
}

/// Returns the problem of a location that is to be the default as another one is.
fn second_default(object: &Object, others: &[Object]) -> Option<Problem> {
    let is_default = |one: &&Object| matches!(&one.body, Body::Location(location) if location.is_default());
    let other = others.iter().find(is_default).filter(|_| is_default(&object))?;
    let (source, line) = (&other.document.source, other.document.line);
    let at = if source.file == object.document.source.file { "" } else { &format!("{}, ", source.file) };
    let message = format!("{other} in {at}line {line} is the default already");
    Some(object.document.problem("location.default", message))
}

/// Sorts objects by kind, and clones after those that make their source.
///
/// # Errors
/// The problem with a file whose clone would be one of itself.
fn sort(objects: &mut [Object]) -> Result<(), (String, Problem)> {
    let made_from = |object: &Object| match &object.body {
        Body::Clone(clone) => Some((clone.destination_volume.clone()?, clone.source.clone()?)),
        _ => None,
    };
    let sources: BTreeMap<VolumeName, VolumeName> = objects.iter().filter_map(made_from).collect();
    let depth = |object: &Object| {
        let source = made_from(object).map(|(_, source)| source);
        iter::successors(source.as_ref(), |volume| sources.get(*volume)).take(sources.len() + 1).count()
    };
    if let Some(Object { document, volumes_field, .. }) =
        objects.iter().find(|object| depth(object) > sources.len())
    {
        let problem = document.problem(volumes_field, "the volume would be a clone of itself");
        return Err((document.source.file.clone(), problem));
    }
    objects.sort_by_cached_key(|object| (object.kind, depth(object)));
    Ok(())
}

/// Returns the files of a path: itself, or those of a directory in the order of their names.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error: io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
    let is_meant = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file()
    };
    let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(is_meant).collect();
    found.sort();
    match found.is_empty() {
        true => Err(Failure::usage(format!("{} has no files *.yaml, *.yml and *.json", path.display()))
            .with_hint("name a file, or a directory with documents")),
        false => Ok(found),
    }
}

/// Reads a file, or stdin for `-`.
fn read(path: &Path, reader: &mut Reader) -> Result<(), Failure> {
    let is_stdin = path.as_os_str() == "-";
    let shown = if is_stdin { STDIN.to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = match is_stdin {
        true => io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| {
        let hint = "name a readable file of UTF-8 text, a directory, or - for stdin";
        Failure::usage(format!("cannot read {shown}: {error}")).with_hint(hint)
    })?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::usage(format!("{shown} is longer than {MAX_FILE_BYTES} bytes")));
    }
    let dir =
        if is_stdin { PathBuf::from(".") } else { path.parent().map(Path::to_owned).unwrap_or_default() };
    reader.add(&text, &shown, &dir);
    Ok(())
}

/// Reads the objects of all files and directories.
///
/// # Errors
/// A file cannot be read, or has an invalid object.
pub fn read_all(paths: &[PathBuf]) -> Result<ObjectSet, Failure> {
    let mut reader = Reader::default();
    for path in paths {
        for file in files_of(path)? {
            read(&file, &mut reader)?;
        }
    }
    reader.finish().map_err(|problems| {
        let of_file = |(file, problems): (String, Vec<Problem>)| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("{file}: {}", problems.join("; "))
        };
        let message = problems.into_iter().map(of_file).collect::<Vec<_>>().join("; ");
        let hint =
            ADVICE.iter().find(|(part, _)| message.contains(part)).map_or(OTHER_ADVICE, |(_, hint)| *hint);
        Failure::usage(message).with_hint(hint)
    })
}
