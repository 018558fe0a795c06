//! Values that several kinds of objects share.

use crate::times::parse_seconds;
use blockd_api::{LabelSelector, Labels};
use blockd_schedule::{Retention, Zone};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::{Map, Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// Label of volumes that a namespace selects.
pub const NAMESPACE: &str = "namespace";

struct OneOrMany<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
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
pub fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_any(OneOrMany(PhantomData))
}

/// Reads an optional value or list of values.
pub fn some_set<'de, D, T>(from: D) -> Result<Option<BTreeSet<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord,
{
    Ok(Some(one_or_many(from)?.into_iter().collect()))
}

/// Writes a list of one value as this value.
pub fn one_as_value<S: Serializer, T: Serialize>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    match items {
        [item] => item.serialize(serializer),
        items => items.serialize(serializer),
    }
}

/// Returns the schema of a list that is written as its value if it has one.
pub fn one_or_many_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let one = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
}

/// Reads a text that YAML may take for a number, such as an id.
pub fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(from)? {
        Value::Number(number) if number.is_u64() => Ok(Some(number.to_string())),
        other => Option::deserialize(other).map_err(D::Error::custom),
    }
}

/// Labels that select volumes: fields, `key=value` pairs, or a list of those for volumes with any.
pub mod selectors {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "labels are expected")]
    enum Pairs {
        Text(String),
        Fields(BTreeMap<String, String>),
    }

    impl TryFrom<Pairs> for LabelSelector {
        type Error = String;

        fn try_from(pairs: Pairs) -> Result<Self, String> {
            let text = match pairs {
                Pairs::Text(text) => text,
                Pairs::Fields(all) => Labels::try_from(all).map_err(|error| error.to_string())?.to_string(),
            };
            match text.parse::<Self>() {
                Ok(selector) if selector.labels().is_empty() => {
                    Err("at least one label is required".to_owned())
                }
                parsed => parsed.map_err(|error| error.to_string()),
            }
        }
    }

    /// Reads selectors.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<LabelSelector>, D::Error> {
        let all = one_or_many::<D, Pairs>(from)?.into_iter();
        all.map(|pairs| pairs.try_into().map_err(D::Error::custom)).collect()
    }

    /// Writes selectors as fields.
    pub fn serialize<S: Serializer>(selectors: &[LabelSelector], to: S) -> Result<S::Ok, S::Error> {
        let labels: Vec<&Labels> = selectors.iter().map(LabelSelector::labels).collect();
        one_as_value(&labels, to)
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

/// Retention by period.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Periods {
    all: bool,
    last: u32,
    hourly: u32,
    daily: u32,
    weekly: u32,
    monthly: u32,
    yearly: u32,
    time_zone: Zone,
}

struct RetainVisitor;

impl<'de> Visitor<'de> for RetainVisitor {
    type Value = Retain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 1 on, `all`, or numbers by period")
    }

    fn visit_u64<E: Error>(self, count: u64) -> Result<Retain, E> {
        match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(Retain::last(count)),
            _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(count), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Retain, E> {
        match text {
            "all" => Ok(Retain::default()),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Retain, A::Error> {
        let periods = Periods::deserialize(MapAccessDeserializer::new(map))?;
        let retain = Retention {
            keep_last: periods.last,
            keep_hourly: periods.hourly,
            keep_daily: periods.daily,
            keep_weekly: periods.weekly,
            keep_monthly: periods.monthly,
            keep_yearly: periods.yearly,
            zone: periods.time_zone,
        };
        match (periods.all, retain.keeps_all()) {
            (true, false) => Err(A::Error::custom("`all` and numbers exclude each other")),
            (false, true) => Err(A::Error::custom("no period is named: write `all` to keep all backups")),
            _ => Ok(Retain(retain)),
        }
    }
}

impl<'de> Deserialize<'de> for Retain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RetainVisitor)
    }
}

impl Serialize for Retain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::default() {
            return serializer.serialize_str("all");
        }
        if *self == Self::last(self.0.keep_last) {
            return serializer.serialize_u32(self.0.keep_last);
        }
        // The text of a retention has its fields, such as `last=24,daily=3`.
        let text = self.0.to_string();
        let field = |part: &str| match part.split_once('=') {
            Some((name, count)) => (name.to_owned(), count.parse::<u32>().unwrap_or_default().into()),
            None => ("all".to_owned(), true.into()),
        };
        let mut fields: Map<String, Value> = text.split(',').map(field).collect();
        if self.0.zone != Zone::utc() {
            fields.insert("timeZone".to_owned(), self.0.zone.to_string().into());
        }
        fields.serialize(serializer)
    }
}

impl JsonSchema for Retain {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Retain".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let count = json!({ "type": "integer", "minimum": 0 });
        let periods = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];
        let mut fields: Map<String, Value> =
            periods.iter().map(|name| ((*name).to_owned(), count.clone())).collect();
        fields.insert("all".to_owned(), json!({ "type": "boolean" }));
        fields.insert("timeZone".to_owned(), generator.subschema_for::<Zone>().into());
        json_schema!({
            "description": "A number of backups, `all`, or numbers by period",
            "anyOf": [count, { "const": "all" }, { "type": "object", "properties": fields }]
        })
    }
}

/// Returns a duration such as `720h0m0s` in seconds.
pub fn parse_ttl(text: &str) -> Result<u64, String> {
    let parts = text.split_inclusive(|letter: char| letter.is_ascii_alphabetic());
    let sum = parts.map(parse_seconds).try_fold(0_u64, |sum, part| sum.checked_add(part.ok()?));
    sum.ok_or_else(|| format!("invalid time {text:?}: expected a time such as 720h0m0s"))
}

/// Returns a path of an object as an absolute path; relative paths start at the directory of its file.
pub fn absolute(dir: &Path, path: &Path) -> PathBuf {
    let path = dir.join(path);
    std::path::absolute(&path).unwrap_or(path)
}

/// Returns a content as JSON, without unset fields.
pub fn view<T: Serialize>(spec: &T) -> Value {
    // The contents have text keys and no fallible implementations.
    without_nulls(serde_json::to_value(spec).unwrap_or_default())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_nulls(value)));
            fields.filter(|(_, value)| !value.is_null()).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
