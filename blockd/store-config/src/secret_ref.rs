//! References to external secrets, which the daemon reads on use and does not store.

use crate::Secret;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
    ser::SerializeMap,
};
use std::{fmt, path::PathBuf, str::FromStr};

/// Maximum length of a reference, in bytes.
pub const MAX_SECRET_REF_BYTES: usize = 1024;

/// Invalid reference. The text is never quoted: it may be a secret in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretRefError {
    /// Unknown scheme.
    #[error("a reference to a secret is systemd:NAME, file:/ABSOLUTE/PATH or command:/ABSOLUTE/PATH")]
    Scheme,
    /// Too long.
    #[error("a reference to a secret has at most {MAX_SECRET_REF_BYTES} bytes")]
    TooLong,
    /// Invalid name of a systemd credential.
    #[error(
        "expected after systemd: the name of a credential of letters, digits, dots, dashes and underscores that does not begin with a dot"
    )]
    Systemd,
    /// An invalid path.
    #[error("expected after file: and command: an absolute path on the host of blockd without ..")]
    Path,
}

/// Reference to a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretRef {
    /// Credential passed by systemd.
    Systemd(String),
    /// File on the daemon's host.
    File(PathBuf),
    /// Program on the daemon's host that prints the secret. It runs without arguments and with an empty
    /// environment.
    Command(PathBuf),
}

impl SecretRef {
    /// Creates a reference to a systemd credential.
    ///
    /// # Errors
    /// The name is invalid.
    pub fn systemd(name: &str) -> Result<Self, SecretRefError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 255 || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(SecretRefError::Systemd);
        }
        Ok(Self::Systemd(name.to_owned()))
    }

    fn path(text: &str) -> Result<PathBuf, SecretRefError> {
        let below_root = text.strip_prefix('/').ok_or(SecretRefError::Path)?;
        let has_parent = text.split('/').any(|name| name == "..");
        if below_root.is_empty() || text.contains(char::is_control) || has_parent {
            return Err(SecretRefError::Path);
        }
        Ok(text.into())
    }
}

impl FromStr for SecretRef {
    type Err = SecretRefError;

    fn from_str(text: &str) -> Result<Self, SecretRefError> {
        if text.len() > MAX_SECRET_REF_BYTES {
            return Err(SecretRefError::TooLong);
        }
        match text.split_once(':') {
            Some(("systemd", name)) => Self::systemd(name),
            Some(("file", path)) => Self::path(path).map(Self::File),
            Some(("command", path)) => Self::path(path).map(Self::Command),
            _ => Err(SecretRefError::Scheme),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd(name) => write!(f, "systemd:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Command(path) => write!(f, "command:{}", path.display()),
        }
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Secret of a request: its value, which the daemon stores sealed, or a reference: `{"from":
/// "file:/etc/blockd/secrets/s3"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretInput {
    /// Value.
    Value(Secret),
    /// Reference.
    From(SecretRef),
}

impl SecretInput {
    /// Returns the value, if given.
    pub fn value(&self) -> Option<&Secret> {
        match self {
            Self::Value(secret) => Some(secret),
            Self::From(_) => None,
        }
    }

    /// Returns the reference, if given.
    pub fn reference(&self) -> Option<&SecretRef> {
        match self {
            Self::Value(_) => None,
            Self::From(reference) => Some(reference),
        }
    }

    /// Returns true for a value of spaces only.
    pub fn is_blank(&self) -> bool {
        self.value().is_some_and(|secret| secret.expose().trim().is_empty())
    }
}

impl From<Secret> for SecretInput {
    fn from(secret: Secret) -> Self {
        Self::Value(secret)
    }
}

impl From<SecretRef> for SecretInput {
    fn from(reference: SecretRef) -> Self {
        Self::From(reference)
    }
}

impl Serialize for SecretInput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(secret) => secret.serialize(serializer),
            Self::From(reference) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("from", reference)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for SecretInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Input;

        impl<'de> Visitor<'de> for Input {
            type Value = SecretInput;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret, or {\"from\": REFERENCE}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SecretInput, E> {
                Ok(SecretInput::Value(Secret::new(text.to_owned())))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<SecretInput, E> {
                Ok(SecretInput::Value(Secret::new(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretInput, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "from" {
                        return Err(A::Error::unknown_field(&key, &["from"]));
                    }
                    if found.replace(map.next_value()?).is_some() {
                        return Err(A::Error::duplicate_field("from"));
                    }
                }
                found.map(SecretInput::From).ok_or_else(|| A::Error::missing_field("from"))
            }
        }

        deserializer.deserialize_any(Input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_written_as_they_were() {
        for text in [
            "systemd:blockd-passphrase",
            "file:/etc/blockd/secrets/s3 key",
            "command:/etc/blockd/secrets/s3-key",
        ] {
            let reference: SecretRef = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
            assert_eq!(serde_json::from_str::<SecretRef>(&format!("\"{text}\"")).unwrap(), reference);
        }
    }

    #[test]
    fn invalid_reference_is_refused_unquoted() {
        for bad in [
            "",
            "planted",
            "env:PLANTED",
            "systemd:",
            "systemd:../planted",
            "systemd:a/planted",
            "systemd:.planted",
            "file:planted",
            "file:/",
            "file:/etc/../planted",
            "command:planted",
            "command:/",
            "command:/bin/../planted",
            "vault:secret/planted#x",
            &format!("file:/{}", "planted".repeat(200)),
        ] {
            let error = bad.parse::<SecretRef>().map(|found| found.to_string());
            let error = error.expect_err(bad).to_string();
            assert!(!error.contains("planted") && !error.contains('\n'), "{bad}: {error}");
        }
    }

    #[test]
    fn secret_input_is_value_or_reference() {
        let read = |text: &str| serde_json::from_str::<SecretInput>(text);
        assert_eq!(read("\"hunter2\"").unwrap(), Secret::new("hunter2".into()).into());
        let from = read(r#"{"from":"systemd:a"}"#).unwrap();
        assert_eq!(from.reference().unwrap().to_string(), "systemd:a");
        for text in ["\"hunter2\"", r#"{"from":"command:/a/b"}"#] {
            assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
        }
        for bad in [
            r#"{}"#,
            r#"{"from":"x"}"#,
            r#"{"to":"systemd:a"}"#,
            "7",
            r#"{"from":"systemd:a","from":"systemd:b"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", read("\"hunter2\"").unwrap()).contains("hunter"));
        assert!(read("\" \"").unwrap().is_blank() && !from.is_blank());
    }
}
