//! Values that several kinds of objects share.

use blockd_api::{LabelSelector, Labels, ObjectName, Secret, SecretRef, VolumeName};
use blockd_schedule::{Retention, Zone};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::Value;
use std::{
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// Names the new volume of an object after the object, unless it has a name.
///
/// # Errors
/// Field and cause: the object's name is no name of a volume.
pub fn name_volume(
    volume: &mut Option<VolumeName>,
    object: &ObjectName,
) -> Result<(), (&'static str, String)> {
    if volume.is_none() {
        *volume = Some(object.as_str().parse().map_err(|error| ("destinationVolume", format!("{error}")))?);
    }
    Ok(())
}

/// One value, or a list of values.
pub mod one_or_many {
    use super::*;

    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value or a list of values")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(text.into_deserializer())?])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(items))
        }
    }

    /// Reads a value or a list of values.
    pub fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_any(OneOrMany(PhantomData))
    }

    /// Writes a list of one value as this value.
    pub fn serialize<S: Serializer, T: Serialize>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        match items {
            [item] => item.serialize(serializer),
            items => items.serialize(serializer),
        }
    }
}

/// Reads an optional value or list of values.
pub fn some_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    one_or_many::deserialize(deserializer).map(Some)
}

/// Labels that select volumes: fields, or `key=value` pairs.
pub mod selectors {
    use super::*;

    struct Selectors;

    impl<'de> Visitor<'de> for Selectors {
        type Value = Option<LabelSelector>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("labels")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let selector: LabelSelector = text.parse().map_err(E::custom)?;
            if selector.labels().is_empty() {
                return Err(E::custom("at least one label is required"));
            }
            Ok(Some(selector))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            self.visit_str(&Labels::deserialize(MapAccessDeserializer::new(map))?.to_string())
        }
    }

    /// Reads a selector.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<LabelSelector>, D::Error> {
        deserializer.deserialize_any(Selectors)
    }

    /// Writes a selector as fields.
    pub fn serialize<S: Serializer>(
        selector: &Option<LabelSelector>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        selector.as_ref().map(LabelSelector::labels).serialize(serializer)
    }
}

/// Retention of a rule or schedule: a number of backups, `all`, or numbers by period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retain(pub Retention);

impl Retain {
    /// Keeps the newest backups.
    pub fn last(count: u32) -> Self {
        Self(Retention { keep_last: count, ..Retention::default() })
    }
}

/// Retention by period, as it is written.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RetainPeriods {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    #[serde(skip_serializing_if = "is_zero")]
    last: u32,
    #[serde(skip_serializing_if = "is_zero")]
    hourly: u32,
    #[serde(skip_serializing_if = "is_zero")]
    daily: u32,
    #[serde(skip_serializing_if = "is_zero")]
    weekly: u32,
    #[serde(skip_serializing_if = "is_zero")]
    monthly: u32,
    #[serde(skip_serializing_if = "is_zero")]
    yearly: u32,
    time_zone: Option<Zone>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl<'de> Deserialize<'de> for Retain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RetainVisitor)
    }
}

struct RetainVisitor;

impl<'de> Visitor<'de> for RetainVisitor {
    type Value = Retain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 1 on, `all`, or numbers by period")
    }

    fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Retain, E> {
        match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(Retain::last(count)),
            _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(count), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Retain, E> {
        match text {
            "all" => Ok(Retain::default()),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Retain, A::Error> {
        let periods = RetainPeriods::deserialize(MapAccessDeserializer::new(map))?;
        let retain = Retention {
            keep_last: periods.last,
            keep_hourly: periods.hourly,
            keep_daily: periods.daily,
            keep_weekly: periods.weekly,
            keep_monthly: periods.monthly,
            keep_yearly: periods.yearly,
            zone: periods.time_zone.unwrap_or_default(),
        };
        match (periods.all, retain.keeps_all()) {
            (true, false) => Err(A::Error::custom("`all` and numbers exclude each other")),
            (false, true) => Err(A::Error::custom("no period is named: write `all` to keep all backups")),
            _ => Ok(Retain(retain)),
        }
    }
}

impl Serialize for Retain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let retain = &self.0;
        if *retain == Retention::default() {
            return serializer.serialize_str("all");
        }
        if retain.keep_last > 0 && *self == Self::last(retain.keep_last) {
            return serializer.serialize_u32(retain.keep_last);
        }
        let periods = RetainPeriods {
            all: retain.keeps_all(),
            last: retain.keep_last,
            hourly: retain.keep_hourly,
            daily: retain.keep_daily,
            weekly: retain.keep_weekly,
            monthly: retain.keep_monthly,
            yearly: retain.keep_yearly,
            time_zone: (retain.zone != Zone::utc()).then(|| retain.zone.clone()),
        };
        periods.serialize(serializer)
    }
}

/// Secret of an object: a value, or its source. Only references are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Value in the file.
    Value(Secret),
    /// File that blockctl reads.
    File(PathBuf),
    /// Environment variable of blockctl.
    Variable(String),
    /// Reference that the daemon resolves.
    Reference(SecretRef),
}

impl SecretSource {
    /// Reads an environment variable, and resolves a path relative to the directory of the file.
    ///
    /// # Errors
    /// The variable is empty or unset.
    pub fn resolve(self, dir: &Path) -> Result<Self, String> {
        match self {
            Self::File(path) => Ok(Self::File(absolute(dir, &path))),
            Self::Variable(name) => match std::env::var(&name) {
                Ok(text) if !text.is_empty() => Ok(Self::Value(Secret::new(text))),
                _ => Err(format!("the environment variable {name} is empty or unset")),
            },
            other => Ok(other),
        }
    }
}

/// Returns a path of an object as an absolute path; relative paths start at the directory of its file.
pub fn absolute(dir: &Path, path: &Path) -> PathBuf {
    let path = dir.join(path);
    std::path::absolute(&path).unwrap_or(path)
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Sources of a secret; exactly one is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sources {
    file: Option<PathBuf>,
    env: Option<String>,
    from: Option<SecretRef>,
    systemd: Option<String>,
    command: Option<String>,
}

struct SecretVisitor;

impl SecretVisitor {
    /// Refuses a plain number or boolean: YAML has changed its spelling, and serde's message would show it.
    fn unquoted<E: serde::de::Error>() -> Result<SecretSource, E> {
        Err(E::custom("a secret is text: write it in quotes"))
    }
}

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret, or one of `file`, `env`, `systemd`, `command` and `from`")
    }

    fn visit_str<E>(self, text: &str) -> Result<SecretSource, E> {
        Ok(SecretSource::Value(Secret::new(text.to_owned())))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<SecretSource, E> {
        Self::unquoted()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<SecretSource, E> {
        Self::unquoted()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<SecretSource, E> {
        Self::unquoted()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<SecretSource, E> {
        Self::unquoted()
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SecretSource, A::Error> {
        let sources = Sources::deserialize(MapAccessDeserializer::new(map))?;
        let reference = |scheme: &str, name: String| {
            format!("{scheme}:{name}").parse().map(SecretSource::Reference).map_err(A::Error::custom)
        };
        match sources {
            Sources { file: Some(path), env: None, from: None, systemd: None, command: None } => {
                Ok(SecretSource::File(path))
            }
            Sources { file: None, env: Some(name), from: None, systemd: None, command: None } => {
                Ok(SecretSource::Variable(name))
            }
            Sources { file: None, env: None, from: Some(from), systemd: None, command: None } => {
                Ok(SecretSource::Reference(from))
            }
            Sources { file: None, env: None, from: None, systemd: Some(name), command: None } => {
                reference("systemd", name)
            }
            Sources { file: None, env: None, from: None, systemd: None, command: Some(path) } => {
                reference("command", path)
            }
            _ => Err(A::Error::custom("one of `file`, `env`, `systemd`, `command` and `from` is expected")),
        }
    }
}

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Reference(from) => serializer.collect_map([("from", from)]),
            _ => serializer.serialize_none(),
        }
    }
}

/// Returns a specification as JSON, without unset fields.
pub fn view<T: Serialize>(spec: &T) -> Value {
    // The specifications have text keys and no fallible implementations.
    without_nulls(serde_json::to_value(spec).unwrap_or_default())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter_map(|(name, value)| {
                Some((name, without_nulls(value))).filter(|(_, value)| !value.is_null())
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
