//! YAML documents (JSON is YAML) with the lines of their fields.

use super::Problem;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fmt};

/// Document of a file.
#[derive(Debug)]
pub struct Document {
    /// First line, from 1 on.
    pub line: usize,
    /// Fields. Those without a value are left out.
    pub fields: Map<String, Value>,
    /// Lines by path, such as `policy.daily.retain`.
    lines: BTreeMap<String, usize>,
}

/// Parses the documents of a text.
///
/// # Errors
/// The text is no YAML, or a document is no mapping.
pub fn documents(text: &str) -> Result<Vec<Document>, Problem> {
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let nodes =
        serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| line_of(&location));
            Problem {
                line,
                path: String::new(),
                message: format!("invalid YAML: {}", error.without_snippet()),
            }
        })?;
    nodes.into_iter().map(Document::new).collect()
}

impl Document {
    fn new(node: Spanned<Node>) -> Result<Self, Problem> {
        let line = line_of(&node.referenced);
        let mut lines = BTreeMap::new();
        match node.value.into_value("", &mut lines) {
            Value::Object(fields) => Ok(Self { line, fields, lines }),
            _ => Err(Problem { line, path: String::new(), message: "a mapping is expected".to_owned() }),
        }
    }

    /// Returns the line of a field, or that of the nearest field around it.
    pub fn line_of(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            match (self.lines.get(path), path.rfind(['.', '['])) {
                (Some(line), _) => return *line,
                (None, Some(end)) => path = &path[..end],
                (None, None) => return self.line,
            }
        }
    }

    /// Returns a problem of a field.
    pub fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        Problem { line: self.line_of(path), path: path.to_owned(), message: message.into() }
    }

    /// Takes a field as its type.
    ///
    /// # Errors
    /// The field is missing or has another type.
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
}

fn line_of(location: &serde_saphyr::Location) -> usize {
    usize::try_from(location.line()).unwrap_or(usize::MAX)
}

/// YAML node.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    /// Returns the value without empty fields, and collects the lines of the fields.
    fn into_value(self, path: &str, lines: &mut BTreeMap<String, usize>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    lines.insert(path.clone(), line_of(&item.referenced));
                    item.value.into_value(&path, lines)
                })
                .collect(),
            Self::Map(fields) => {
                let mut map = Map::new();
                for (name, field) in fields {
                    let path =
                        if path.is_empty() { name.value.clone() } else { format!("{path}.{}", name.value) };
                    lines.insert(path.clone(), line_of(&name.referenced));
                    let value = field.value.into_value(&path, lines);
                    if !value.is_null() {
                        map.insert(name.value, value);
                    }
                }
                map.into()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Node::Map(map))
    }
}
