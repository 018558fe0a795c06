//! YAML out of JSON values: enough for objects, and read back as the same values by anything that reads YAML.

use serde_json::Value;
use std::fmt::Write;

/// Words that are no text where they stand without quotes, to some reader or other.
const NO_TEXT: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

/// The value as YAML, with a line end.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => block(value, 0, &mut text),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut text),
        other => {
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let _ = write!(text, "{indent}{}:", plain_or_quoted(name));
                nested(field, depth + 1, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_block(item) {
                    // The first line of the item stands behind its dash.
                    let mut inner = String::new();
                    block(item, depth + 1, &mut inner);
                    let rest = inner.get(indent.len() + 2..).unwrap_or_default();
                    let _ = write!(text, "{indent}- {rest}");
                } else {
                    let _ = writeln!(text, "{indent}- {}", scalar(item));
                }
            }
        }
        other => {
            let _ = writeln!(text, "{indent}{}", scalar(other));
        }
    }
}

fn nested(field: &Value, depth: usize, text: &mut String) {
    if is_block(field) {
        text.push('\n');
        block(field, depth, text);
    } else {
        let _ = writeln!(text, " {}", scalar(field));
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        // Empty ones, numbers and truth values are written as in JSON.
        other => other.to_string(),
    }
}

fn plain_or_quoted(text: &str) -> String {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./@+".contains(c);
    if starts_well && text.chars().all(is_plain) && !NO_TEXT.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    // A JSON string is a YAML one.
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::node::{Node, NodeValue, documents};
    use serde_json::json;

    /// What a reader of YAML makes of it, types of scalars included.
    fn value_of(node: &Node) -> Value {
        match &node.value {
            NodeValue::Null => Value::Null,
            NodeValue::Scalar { text, quoted: true } => Value::from(text.as_str()),
            NodeValue::Scalar { text, quoted: false } => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()))
            }
            NodeValue::List(items) => items.iter().map(value_of).collect(),
            NodeValue::Map(fields) => {
                fields.iter().map(|(key, value)| (key.name.clone(), value_of(value))).collect()
            }
        }
    }

    #[test]
    fn emitted_yaml_parses_back() {
        let value = json!({
            "kind": "SchedulePolicy",
            "metadata": { "name": "gold" },
            "policy": {
                "daily": { "retain": 5, "time": "22:14" },
                "weekly": [{ "day": "Thursday", "at": ["x", ["y"]] }, { "day": "no" }],
                "empty": [], "none": {}, "nothing": null, "flag": true, "float": 1.5
            },
            "texts": ["", "true", "Yes", "12", "a: b", "# c", "- d", "ä\n\"e\"", "/srv/x", "20MiB@08:00", "~", "0x1f", "1e3"]
        });
        let text = yaml(&value);
        assert_eq!(value_of(&documents(&text).unwrap()[0]), value, "{text}");
        assert!(text.contains("kind: SchedulePolicy\nmetadata:\n  name: gold\n"), "{text}");
        assert!(text.contains("  weekly:\n    - at:\n"), "{text}");
        assert_eq!(yaml(&json!([])), "[]\n");
        assert_eq!(yaml(&json!([{ "a": 1, "b": 2 }, 3])), "- a: 1\n  b: 2\n- 3\n");
    }
}
