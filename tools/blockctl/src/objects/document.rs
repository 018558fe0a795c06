//! YAML documents (JSON is YAML) with the lines of their fields.
//!
//! A document is read as a tree first, because its kind decides the type of its content. Each part is then
//! taken as its type, whose errors name field and line. Documents of other systems are converted as trees:
//! their fields move to those of a kind of ours, errors name them by the path in the file, and the others
//! are ignored with a warning.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

/// Error of a field that YAML reads as a number or a truth value.
const NO_TEXT: &str = "text is expected: write it in quotes";

/// Path in a content and cause.
pub type FieldError = (String, String);

/// Content of an object that can be checked beyond its type.
pub trait Spec: DeserializeOwned {
    /// Checks the content of the object `name`, and sets defaults.
    fn check(&mut self, name: &str) -> Result<(), FieldError>;
}

/// Problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1 on.
    pub line: usize,
    /// Path in the document, such as `policy.daily.retain`.
    pub path: String,
    /// Cause.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(f, "line {}: {}{colon}{}", self.line, self.path, self.message)
    }
}

/// File or stdin.
#[derive(Debug, Default)]
pub struct Source {
    /// Name for messages.
    pub file: String,
    /// Directory of relative paths.
    pub dir: PathBuf,
}

/// Document of a file.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub source: Arc<Source>,
    /// First line, from 1 on.
    pub line: usize,
    /// Warnings about fields.
    pub warnings: Vec<Problem>,
    /// Warnings of the document that this one was converted from.
    pub inherited: Vec<Problem>,
    /// Unknown fields are ignored: the document is one of another system.
    pub is_foreign: bool,
    /// An equal object of another document is the same one.
    pub is_derived: bool,
    /// Error of a field that selects fewer volumes and is not supported, if they are lost.
    pub wider: Option<Problem>,
    /// Fields. Those without a value are left out.
    fields: Map<String, Value>,
    /// Lines by path, such as `.policy.daily.retain`.
    lines: BTreeMap<String, usize>,
    /// Paths in the file by path here, if the document was converted.
    origins: BTreeMap<String, String>,
    /// Paths of ignored fields.
    ignored: Vec<String>,
    /// Paths of fields from which inner fields were removed.
    opened: BTreeSet<String>,
    /// Paths of removed and missing fields.
    known: BTreeSet<String>,
}

/// Parses the documents of a text.
pub fn documents(text: &str, source: &Arc<Source>) -> Result<Vec<Document>, Problem> {
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let problem = |line, message| Problem { line, path: String::new(), message };
    let nodes =
        serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| line_of(&location));
            problem(line, format!("invalid YAML: {}", cause_of(&error)))
        })?;
    let document = |Spanned { value: Node { value, lines }, referenced, .. }: Spanned<Node>| {
        let line = line_of(&referenced);
        match value {
            Value::Object(fields) => {
                let (source, lines) = (Arc::clone(source), lines.into_iter().collect());
                Ok(Document { source, line, fields, lines, ..Document::default() })
            }
            _ => Err(problem(line, "a mapping is expected".to_owned())),
        }
    };
    nodes.into_iter().map(document).collect()
}

impl Document {
    /// Returns a problem of a field, with its line or that of the nearest field around it. A message that
    /// begins with an inner field of the file is about that one.
    pub fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let (mut path, mut message) = (path.to_owned(), message.into());
        while let Some((field, cause)) = message.split_once(": ") {
            let inner = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
            if !self.is_written(&inner) {
                break;
            }
            (path, message) = (inner, cause.to_owned());
        }
        let path = self.written(&path);
        Problem { line: self.line_of(&path), path, message }
    }

    /// Returns a message about a field, with its file and line.
    pub fn at(&self, path: &str, message: impl Into<String>) -> String {
        format!("{}: {}", self.source.file, self.problem(path, message))
    }

    /// Returns the path in the file of a field that was converted from another one.
    pub fn origin(&self, path: &str) -> Option<&str> {
        self.origins.get(path).map(String::as_str)
    }

    /// Sets the path in the file of a field without a value, for messages.
    pub fn set_origin(&mut self, path: &str, origin: &str) {
        self.origins.insert(path.to_owned(), origin.to_owned());
    }

    /// Returns true if the file has a field.
    pub fn is_written(&self, path: &str) -> bool {
        self.lines.contains_key(&format!(".{}", self.written(path)))
    }

    /// Returns the path of a field in the file.
    pub fn written(&self, path: &str) -> String {
        let mut nearest = path;
        loop {
            if let Some(origin) = self.origins.get(nearest) {
                return format!("{origin}{}", &path[nearest.len()..]);
            }
            match nearest.rfind(['.', '[']) {
                Some(end) => nearest = &nearest[..end],
                None => return path.to_owned(),
            }
        }
    }

    fn line_of(&self, path: &str) -> usize {
        let mut nearest = format!(".{path}");
        while !nearest.is_empty() && !self.lines.contains_key(&nearest) {
            nearest.truncate(nearest.rfind(['.', '[']).unwrap_or(0));
        }
        self.lines.get(&nearest).copied().unwrap_or(self.line)
    }

    /// Warns about a field.
    pub fn warn(&mut self, path: &str, message: &str) {
        let warning = self.problem(path, message);
        self.warnings.push(warning);
    }

    /// Adds a field to those that the warning of [`Document::finish`] lists.
    pub fn ignore(&mut self, path: &str) {
        let path = self.written(path);
        self.ignored.push(path);
    }

    /// Removes a field.
    pub fn remove(&mut self, path: &str) -> Option<Value> {
        self.known.insert(path.to_owned());
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let steps = parents.split('.').filter(|step| !step.is_empty());
        let fields =
            steps.clone().try_fold(&mut self.fields, |fields, step| fields.get_mut(step)?.as_object_mut());
        let found = fields?.remove(name);
        steps.fold(String::new(), |parent, step| {
            let path = if parent.is_empty() { step.to_owned() } else { format!("{parent}.{step}") };
            self.opened.insert(path.clone());
            path
        });
        found
    }

    /// Sets a field that the file has at another path.
    pub fn set(&mut self, path: &str, value: Value, origin: &str) {
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut fields = &mut self.fields;
        for step in parents.split('.').filter(|step| !step.is_empty()) {
            let inner = fields.entry(step).or_insert_with(|| Map::new().into());
            if !inner.is_object() {
                *inner = Map::new().into();
            }
            let Value::Object(inner) = inner else { return };
            fields = inner;
        }
        fields.insert(name.to_owned(), value);
        self.set_origin(path, origin);
    }

    /// Returns a document without fields, with the lines of this one.
    pub fn emptied(&self) -> Self {
        let (source, lines) = (Arc::clone(&self.source), self.lines.clone());
        Self { source, line: self.line, lines, ..Self::default() }
    }

    /// Returns a document without fields and warnings, with the paths and lines of this one.
    pub fn positions(&self) -> Self {
        Self { origins: self.origins.clone(), ..self.emptied() }
    }

    /// Returns a field.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut steps = path.split('.');
        let first = self.fields.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    }

    /// Returns the name of the object.
    pub fn name(&self) -> Result<String, Problem> {
        if !self.has("metadata") {
            return Err(self.problem("metadata", "missing"));
        }
        let name = self.get("metadata.name").and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(|| self.problem("metadata", "missing field `name`"))
    }

    /// Sets a missing field.
    pub fn set_default(&mut self, path: &str, value: Value, origin: &str) {
        let given = self.remove(path);
        self.set(path, given.unwrap_or(value), origin);
    }

    /// Removes fields and sets them at paths of ours: `FROM>TO`, or one path for both. Errors about a missing
    /// field name its first path in the file.
    pub fn move_all(&mut self, native: &mut Self, moves: &str) {
        for one in moves.split_whitespace() {
            let (from, to) = one.split_once('>').unwrap_or((one, one));
            match self.remove(from) {
                Some(value) => native.set(to, value, from),
                None if native.origin(to).is_none() => native.set_origin(to, from),
                None => {}
            }
        }
    }

    /// Removes a field as its type.
    pub fn take_as<T: DeserializeOwned>(&mut self, path: &str, message: &str) -> Result<Option<T>, Problem> {
        let taken = self.remove(path).map(serde_json::from_value).transpose();
        taken.map_err(|_| self.problem(path, message))
    }

    /// Removes a field that is text.
    pub fn take_text(&mut self, path: &str) -> Result<Option<String>, Problem> {
        self.take_as(path, NO_TEXT)
    }

    /// Removes a field that is a list of texts.
    pub fn take_texts(&mut self, path: &str) -> Result<Option<Vec<String>>, Problem> {
        let Some(items) = self.take_as::<Vec<Value>>(path, "a list is expected")? else { return Ok(None) };
        let text = |(index, item): (usize, Value)| match item {
            Value::String(text) => Ok(text),
            _ => Err(self.problem(&format!("{path}[{index}]"), NO_TEXT)),
        };
        items.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// Returns the problem of a field that was not removed and resembles a missing one.
    pub fn misspelled(&self) -> Option<Problem> {
        let parts =
            |path: &str| path.rsplit_once('.').map(|(parent, name)| (parent.to_owned(), name.to_owned()));
        let missing = self.known.iter().filter(|path| self.get(path).is_none() && !self.is_written(path));
        missing.filter_map(|path| parts(path)).find_map(|(parent, name)| {
            let fields = self.get(&parent)?.as_object()?;
            let given = fields.keys().find(|given| is_misspelled(given, &name))?;
            let message = format!("unknown field, `{name}` is expected");
            Some(self.problem(&format!("{parent}.{given}"), message))
        })
    }

    /// Ignores all fields that were not removed; fields around removed ones are not listed themselves.
    pub fn ignore_rest(&mut self) {
        let fields = std::mem::take(&mut self.fields);
        self.ignore_all("", fields);
    }

    fn ignore_all(&mut self, parent: &str, fields: Map<String, Value>) {
        for (name, value) in fields {
            let path = if parent.is_empty() { name } else { format!("{parent}.{name}") };
            match value {
                Value::Object(inner) if self.opened.contains(&path) => self.ignore_all(&path, inner),
                _ => self.ignored.push(path),
            }
        }
    }

    /// Ignores the other fields, and returns the warnings about a converted object.
    pub fn close(mut self, object: &str) -> Vec<Problem> {
        for path in ["kind", "apiVersion", "metadata.name"] {
            self.remove(path);
        }
        self.ignore_rest();
        self.finish(object)
    }

    /// Returns the warnings about an object, with one for all ignored fields.
    pub fn finish(mut self, object: &str) -> Vec<Problem> {
        for warning in &mut self.warnings {
            warning.path = format!("{object}: {}", warning.path);
        }
        let mut ignored: Vec<(usize, &String)> =
            self.ignored.iter().map(|path| (self.line_of(path), path)).collect();
        ignored.sort_unstable();
        if let Some((line, _)) = ignored.first() {
            let listed: Vec<String> =
                ignored.iter().map(|(line, path)| format!("{path} (line {line})")).collect();
            let message = format!("ignored without a meaning on a host: {}", listed.join(", "));
            self.warnings.push(Problem { line: *line, path: object.to_owned(), message });
        }
        self.inherited.append(&mut self.warnings);
        self.inherited
    }

    /// Returns true if a field is given.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Returns the fields that are not taken.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Takes a field as its type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Problem> {
        if self.fields.get(name).is_some_and(Value::is_array) {
            // Serde reads a list as the fields of a struct in their order.
            return Err(self.problem(name, "a list is not expected"));
        }
        self.take_list(name)
    }

    /// Takes a field that may be a list as its type.
    pub fn take_list<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Problem> {
        let value = self.fields.remove(name).ok_or_else(|| self.problem(name, "missing"))?;
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = match error.path().to_string().as_str() {
                "." => name.to_owned(),
                inner if inner.starts_with('[') => format!("{name}{inner}"),
                inner => format!("{name}.{inner}"),
            };
            self.problem(&path, error.inner().to_string().replace("expected u32", "expected a whole number"))
        })
    }

    /// Takes a field as the content of an object.
    pub fn spec<T: Spec>(&mut self, field: &str, name: &str) -> Result<T, Problem> {
        let mut spec: T = self.take(field)?;
        spec.check(name).map_err(|(path, message)| {
            let dot = if path.is_empty() { "" } else { "." };
            self.problem(&format!("{field}{dot}{path}"), message)
        })?;
        Ok(spec)
    }
}

/// Returns the cause of an error of the parser.
fn cause_of(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            // These fields at the start of a line begin a document.
            let is_outer = error.location().is_some_and(|location| location.column() == 1);
            let begins = is_outer && ["apiVersion", "kind"].contains(&key.as_str());
            let advice = if begins { ": separate documents with a line `---`" } else { "" };
            format!("a second field `{key}`{advice}")
        }
        other => {
            // The line is at the beginning of the message.
            let text = other.to_string();
            text.split_once(" at line ").map_or(text.as_str(), |(cause, _)| cause).to_owned()
        }
    }
}

/// Minimum length of a misspelled name: shorter ones resemble others.
const MIN_CHARS: usize = 5;

/// Returns true for a name that differs from another one in its case, one letter, or the order of two.
fn is_misspelled(given: &str, name: &str) -> bool {
    let (given, name) = (given.to_ascii_lowercase().into_bytes(), name.to_ascii_lowercase().into_bytes());
    if given.len() < MIN_CHARS || name.len() < MIN_CHARS {
        return false;
    }
    let start = given.iter().zip(&name).take_while(|(one, other)| one == other).count();
    let (given, name) = (&given[start..], &name[start..]);
    let end = given.iter().rev().zip(name.iter().rev()).take_while(|(one, other)| one == other).count();
    let (given, name) = (&given[..given.len() - end], &name[..name.len() - end]);
    match (given, name) {
        ([a, b], [c, d]) => (a, b) == (d, c),
        _ => given.len() <= 1 && name.len() <= 1,
    }
}

fn line_of(location: &serde_saphyr::Location) -> usize {
    usize::try_from(location.line()).unwrap_or(usize::MAX)
}

/// YAML value without empty fields, and the lines of its fields by path.
struct Node {
    value: Value,
    lines: Vec<(String, usize)>,
}

impl Node {
    /// Adds the lines of an inner node and returns its value.
    fn adopt(&mut self, step: &str, line: usize, inner: Self) -> Value {
        self.lines.push((step.to_owned(), line));
        self.lines.extend(inner.lines.into_iter().map(|(path, line)| (format!("{step}{path}"), line)));
        inner.value
    }
}

impl<T: Into<Value>> From<T> for Node {
    fn from(value: T) -> Self {
        Self { value: value.into(), lines: Vec::new() }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

/// Visits of scalars, which become values of JSON.
macro_rules! scalars {
    ($($visit:ident: $type:ty),+) => {
        $(fn $visit<E>(self, value: $type) -> Result<Node, E> {
            Ok(value.into())
        })+
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Value::Null.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let (mut node, mut list) = (Node::from(()), Vec::new());
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            let step = format!("[{}]", list.len());
            list.push(node.adopt(&step, line_of(&item.referenced), item.value));
        }
        Ok(Node { value: list.into(), ..node })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let (mut node, mut map) = (Node::from(()), Map::new());
        while let Some((name, inner)) = fields.next_entry::<Spanned<String>, Node>()? {
            let value = node.adopt(&format!(".{}", name.value), line_of(&name.referenced), inner);
            if !value.is_null() {
                map.insert(name.value, value);
            }
        }
        Ok(Node { value: map.into(), ..node })
    }
}
