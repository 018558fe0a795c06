//! YAML as a tree that knows its lines, so that what is wrong can be named by place. JSON is YAML.
//!
//! Anchors and tags are refused: a file of objects needs neither, and without anchors a small file is a small
//! tree.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// How deep a tree may be.
const MAX_DEPTH: usize = 32;

/// Something in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line that it begins in, from 1 on.
    pub line: usize,
    /// What it is.
    pub value: NodeValue,
}

/// What something in a file is.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeValue {
    /// Nothing: no text, `null` or `~`.
    Null,
    /// Text, a number or a truth value.
    Scalar {
        /// As it is written, without quotes.
        text: String,
        /// It stands in quotes, so that it is text.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// Fields, in their order.
    Map(Vec<(Key, Node)>),
}

/// The name of a field.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The name.
    pub name: String,
    /// Its line.
    pub line: usize,
}

/// Why a text is no file of objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NotUnderstood {
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// A node that is being read.
enum Open {
    List(usize, Vec<Node>),
    Map(usize, Vec<(Key, Node)>, Option<Key>),
}

/// The documents in a text; what is empty is left out.
///
/// # Errors
/// It is no YAML, or has what is not understood.
pub fn documents(text: &str) -> Result<Vec<Node>, NotUnderstood> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| NotUnderstood {
            line: error.marker().line(),
            what: format!("this is no YAML: {}", error.info()),
        })?;
        let line = span.start.line();
        let refuse = |what: &str| Err(NotUnderstood { line, what: what.to_owned() });
        let node = match event {
            Event::Alias(_) => return refuse("aliases (`*name`) are not understood: write it out"),
            Event::Scalar(text, style, anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors (`&name`) and tags (`!name`) are not understood");
                }
                Some(Node { line, value: scalar(&text, style) })
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= MAX_DEPTH => {
                return refuse("this is nested too deeply");
            }
            Event::SequenceStart(anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors (`&name`) and tags (`!name`) are not understood");
                }
                open.push(Open::List(line, Vec::new()));
                None
            }
            Event::MappingStart(anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors (`&name`) and tags (`!name`) are not understood");
                }
                open.push(Open::Map(line, Vec::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|closed| match closed {
                Open::List(line, items) => Node { line, value: NodeValue::List(items) },
                Open::Map(line, fields, _) => Node { line, value: NodeValue::Map(fields) },
            }),
            _ => None,
        };
        let Some(node) = node else { continue };
        match open.last_mut() {
            None if node.value == NodeValue::Null => {}
            None => documents.push(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(_, fields, key)) => match key.take() {
                Some(name) => fields.push((name, node)),
                None => *key = Some(key_of(node, fields)?),
            },
        }
    }
    Ok(documents)
}

fn scalar(text: &str, style: ScalarStyle) -> NodeValue {
    let quoted = style != ScalarStyle::Plain;
    if !quoted && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return NodeValue::Null;
    }
    NodeValue::Scalar { text: text.to_owned(), quoted }
}

fn key_of(node: Node, fields: &[(Key, Node)]) -> Result<Key, NotUnderstood> {
    let line = node.line;
    let NodeValue::Scalar { text: name, .. } = node.value else {
        return Err(NotUnderstood { line, what: "the name of a field must be text".to_owned() });
    };
    if fields.iter().any(|(key, _)| key.name == name) {
        return Err(NotUnderstood { line, what: format!("the field `{name}` is there twice") });
    }
    Ok(Key { name, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let text = "# first\na: 1\nb:\n  - x\n  - \"true\"\n---\n---\n{\"c\": null,\n \"d\": {\"e\": [1]}}\n";
        let found = documents(text).unwrap();
        assert_eq!(found.len(), 2);
        let NodeValue::Map(fields) = &found[0].value else { panic!("{found:?}") };
        assert_eq!((fields[0].0.name.as_str(), fields[0].0.line), ("a", 2));
        assert_eq!(fields[0].1.value, NodeValue::Scalar { text: "1".into(), quoted: false });
        let NodeValue::List(items) = &fields[1].1.value else { panic!("{found:?}") };
        assert_eq!((items[1].line, items.len()), (5, 2));
        assert_eq!(items[1].value, NodeValue::Scalar { text: "true".into(), quoted: true });
        let NodeValue::Map(fields) = &found[1].value else { panic!("{found:?}") };
        assert_eq!((fields[0].1.value.clone(), fields[1].0.line), (NodeValue::Null, 9));
        assert!(documents("").unwrap().is_empty() && documents("---\n# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn unknown_field_is_reported_with_line() {
        for (text, line, part) in [
            ("a: 1\nb: [1, 2\n", 3, "no YAML"),
            ("a: 1\nb: 2\na: 3\n", 3, "`a` is there twice"),
            ("a: &x 1\nb: *x\n", 1, "anchors"),
            ("a: 1\nb: !!int 2\n", 2, "tags"),
            ("a:\n  ? [1]\n  : 2\n", 2, "must be text"),
        ] {
            let error = documents(text).unwrap_err();
            assert!(error.what.contains(part) && error.line == line, "{text:?}: {error:?}");
        }
        let deep = "[".repeat(40) + &"]".repeat(40);
        assert!(documents(&deep).unwrap_err().what.contains("too deeply"));
    }
}
