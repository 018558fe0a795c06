//! Removal of secrets from support bundles.

use serde_json::Value;

/// Placeholder of a secret.
pub const REMOVED: &str = "(removed)";
/// Parts of names of secret fields. The daemon sends none; this is a second line of defence.
const SECRET: [&str; 8] =
    ["secret", "password", "passphrase", "token", "signature", "privatekey", "accountkey", "accesskey"];

/// Removes everything that resembles a secret.
pub fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Commands and their output can contain secrets.
            let kind = fields.get("kind").and_then(Value::as_str);
            if kind.is_some_and(|kind| ["pre-command", "post-command"].contains(&kind)) {
                for name in ["target", "error", "output"] {
                    if let Some(text @ Value::String(_)) = fields.get_mut(name) {
                        *text = REMOVED.into();
                    }
                }
            }
            for (name, value) in fields {
                let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
                let name = name.to_ascii_lowercase();
                match value {
                    Value::String(text)
                        if SECRET.iter().any(|word| name.contains(word))
                            || ["precommand", "postcommand"].contains(&name.as_str()) =>
                    {
                        *text = REMOVED.into();
                    }
                    value => clean(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::String(text) => {
            if let Some(cleaned) = without_user(text) {
                *text = cleaned;
            }
        }
        _ => {}
    }
}

/// Removes user and password from URLs; `None` without any.
fn without_user(text: &str) -> Option<String> {
    let mut words = Vec::new();
    let mut found = false;
    for word in text.split(' ') {
        let parts = word.split_once("://").and_then(|(scheme, rest)| {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let (user, _) = authority.rsplit_once('@')?;
            Some(format!("{scheme}://{REMOVED}@{}", &rest[user.len() + 1..]))
        });
        found |= parts.is_some();
        words.push(parts.unwrap_or_else(|| word.to_owned()));
    }
    found.then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_removed_at_any_depth() {
        let mut bundle = json!({
            "credentials": [
                { "name": "nas", "s3SecretKey": "planted-1", "encryption_passphrase": "planted-2", "encryption": true },
                { "proxy": "http://me:planted-3@proxy.example:8080/x", "azure-account-key": "planted-4", "s3AccessKey": "planted-5" },
            ],
            "tasks": [{ "error": "PUT x at https://u:planted-6@s.example/b: refused", "nested": { "authToken": "planted-7" } }],
            "steps": [{ "kind": "pre-command", "target": "x -p planted-8", "error": "planted-9", "output": "planted-0", "exitStatus": 3 }],
            "rules": [{ "name": "hold", "preCommand": "x -p planted-8", "postCommand": null }],
            "volumes": [{ "name": "secretary", "labels": { "app": "mail@example" } }],
        });
        clean(&mut bundle);
        let text = bundle.to_string();
        assert!(!text.contains("planted"), "{text}");
        for kept in
            ["\"nas\"", "secretary", "proxy.example:8080/x", "mail@example", "s.example/b: refused", "true"]
        {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }
}
