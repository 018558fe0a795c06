//! YAML documents (JSON is YAML) with the lines of their fields.
//!
//! A document is read as a tree first, because its kind decides the type of its content. Each part is then
//! taken as its type, whose errors name field and line. Conversions of foreign kinds remove fields without a
//! meaning here with [`Document::ignore`] before, or report them afterwards with [`Document::warn`].

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fmt};

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
    /// Path in the object, such as `policy.daily.retain`.
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

/// Document of a file.
#[derive(Debug)]
pub struct Document {
    /// First line, from 1 on.
    pub line: usize,
    /// Fields that are ignored.
    pub warnings: Vec<Problem>,
    /// Fields. Those without a value are left out.
    fields: Map<String, Value>,
    /// Lines by path, such as `.policy.daily.retain`.
    lines: BTreeMap<String, usize>,
}

/// Parses the documents of a text.
pub fn documents(text: &str) -> Result<Vec<Document>, Problem> {
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let problem = |line, message| Problem { line, path: String::new(), message };
    let nodes =
        serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| line_of(&location));
            problem(line, format!("invalid YAML: {}", error.without_snippet()))
        })?;
    let document = |Spanned { value: Node { value, lines }, referenced, .. }: Spanned<Node>| {
        let line = line_of(&referenced);
        match value {
            Value::Object(fields) => {
                Ok(Document { line, warnings: Vec::new(), fields, lines: lines.into_iter().collect() })
            }
            _ => Err(problem(line, "a mapping is expected".to_owned())),
        }
    };
    nodes.into_iter().map(document).collect()
}

impl Document {
    /// Returns a problem of a field, with its line or that of the nearest field around it.
    pub fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let mut nearest = format!(".{path}");
        while !nearest.is_empty() && !self.lines.contains_key(&nearest) {
            nearest.truncate(nearest.rfind(['.', '[']).unwrap_or(0));
        }
        let line = self.lines.get(&nearest).copied().unwrap_or(self.line);
        Problem { line, path: path.to_owned(), message: message.into() }
    }

    /// Warns that a field is ignored.
    pub fn warn(&mut self, path: &str, reason: &str) {
        let warning = self.problem(path, format!("this is ignored: {reason}"));
        self.warnings.push(warning);
    }

    /// Removes a field, and warns that it is ignored if it was given.
    pub fn ignore(&mut self, path: &str, reason: &str) {
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = parents
            .split('.')
            .filter(|step| !step.is_empty())
            .try_fold(&mut self.fields, |fields, step| fields.get_mut(step)?.as_object_mut());
        if parent.is_some_and(|fields| fields.remove(name).is_some()) {
            self.warn(path, reason);
        }
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
        let value = self.fields.remove(name).ok_or_else(|| self.problem(name, "missing"))?;
        if value.is_array() {
            // Serde reads a list as the fields of a struct in their order.
            return Err(self.problem(name, "a list is not expected"));
        }
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = match error.path().to_string().as_str() {
                "." => name.to_owned(),
                inner if inner.starts_with('[') => format!("{name}{inner}"),
                inner => format!("{name}.{inner}"),
            };
            self.problem(&path, error.inner().to_string())
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
