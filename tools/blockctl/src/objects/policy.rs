//! Rules of schedule policies and schedules: a block for each kind of recurrence.

use super::{
    document::{FieldError, Spec},
    values::{Retain, one_as_value, one_or_many, view},
};
use blockd_api::schedules::Rule;
use blockd_schedule::{Recurrence, When, Zone};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Blocks in their order, and the fields of their times.
pub const BLOCKS: [(&str, &[&str]); 6] = [
    ("interval", &["intervalMinutes"]),
    ("daily", &["time"]),
    ("weekly", &["day", "time"]),
    ("monthly", &["date", "time"]),
    ("cron", &["expression"]),
    ("calendar", &["expression"]),
];

/// Rules in the order of the blocks.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Blocks")]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Orders the rules of the daemon.
    pub fn of(rules: &[Rule]) -> Self {
        let mut rules = rules.to_vec();
        for rule in rules.iter_mut().filter(|rule| !is_timed(rule)) {
            // An interval is the same in every time zone.
            rule.when.zone = Zone::utc();
        }
        rules.sort_by_key(|rule| (block_index(&rule.when.when), rule.when.to_string()));
        Self(rules)
    }

    /// Returns true without rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Spec for Rules {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        match self.is_empty() {
            true => Err((String::new(), format!("give {}", BLOCKS.map(|(name, _)| name).join(", ")))),
            false => Ok(()),
        }
    }
}

fn is_timed(rule: &Rule) -> bool {
    !matches!(rule.when.when, When::Periodic { .. })
}

/// Returns the index of a kind in [`BLOCKS`].
const fn block_index(when: &When) -> usize {
    match when {
        When::Periodic { .. } => 0,
        When::Daily { .. } => 1,
        When::Weekly { .. } => 2,
        When::Monthly { .. } => 3,
        When::Cron(_) => 4,
        When::OnCalendar(_) => 5,
    }
}

/// Written form of a rule; its valid fields depend on the name of the block.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Block {
    interval_minutes: Option<u32>,
    day: Option<String>,
    date: Option<u32>,
    time: Option<String>,
    expression: Option<String>,
    retain: Option<Retain>,
    time_zone: Option<Zone>,
}

/// Blocks of a policy.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Blocks {
    time_zone: Zone,
    #[serde(deserialize_with = "one_or_many")]
    interval: Vec<Block>,
    #[serde(deserialize_with = "one_or_many")]
    daily: Vec<Block>,
    #[serde(deserialize_with = "one_or_many")]
    weekly: Vec<Block>,
    #[serde(deserialize_with = "one_or_many")]
    monthly: Vec<Block>,
    #[serde(deserialize_with = "one_or_many")]
    cron: Vec<Block>,
    #[serde(deserialize_with = "one_or_many")]
    calendar: Vec<Block>,
}

impl Block {
    fn rule(self, name: &str, fields: &[&str], zone: &Zone) -> Result<Rule, String> {
        let mut words = Vec::new();
        for (field, word) in [
            ("intervalMinutes", self.interval_minutes.map(|minutes| minutes.to_string())),
            ("day", self.day),
            ("date", self.date.map(|date| date.to_string())),
            ("time", self.time),
            ("expression", self.expression),
        ] {
            match (word, fields.contains(&field)) {
                (Some(word), true) => words.push(word),
                (None, true) => return Err(format!("missing field `{field}`")),
                (Some(_), false) => return Err(format!("unknown field `{field}`")),
                (None, false) => {}
            }
        }
        let text = words.join("@");
        let zone = self.time_zone.unwrap_or_else(|| zone.clone());
        let when = match name {
            // The expression may name a time zone itself.
            "calendar" => Recurrence::on_calendar(&text, &zone),
            _ => format!("{name} {text}").parse().map(|when| Recurrence { when, zone }),
        };
        let when = when.map_err(|error| match fields {
            [only] => format!("{only}: {error}"),
            _ => error.to_string(),
        })?;
        Ok(Rule { when, retain: self.retain.map(|retain| retain.0) })
    }
}

impl TryFrom<Blocks> for Rules {
    type Error = String;

    fn try_from(blocks: Blocks) -> Result<Self, String> {
        let Blocks { time_zone, interval, daily, weekly, monthly, cron, calendar } = blocks;
        let mut rules = Vec::new();
        for ((name, fields), list) in BLOCKS.iter().zip([interval, daily, weekly, monthly, cron, calendar]) {
            for block in list {
                let rule = block.rule(name, fields, &time_zone);
                rules.push(rule.map_err(|error| format!("{name}: {error}"))?);
            }
        }
        Ok(Self::of(&rules))
    }
}

/// Returns a rule as a block.
fn block_of(rule: &Rule, common: &Zone) -> Value {
    // The text of a time is its kind and its fields, such as `weekly Thursday@22:13`.
    let text = rule.when.when.to_string();
    let words = text.split_once(' ').map_or("", |(_, words)| words);
    let words: Vec<&str> = match &rule.when.when {
        When::Periodic { .. } => vec![words.trim_end_matches("min")],
        When::Cron(_) | When::OnCalendar(_) => vec![words],
        When::Daily { .. } | When::Weekly { .. } | When::Monthly { .. } => {
            words.split('@').filter(|word| !word.is_empty()).collect()
        }
    };
    let value = |word: &str| word.parse::<u32>().map_or_else(|_| word.into(), Value::from);
    let fields = BLOCKS[block_index(&rule.when.when)].1.iter().zip(words);
    let mut block: Map<String, Value> =
        fields.map(|(field, word)| ((*field).to_owned(), value(word))).collect();
    if let Some(retain) = &rule.retain {
        block.insert("retain".to_owned(), view(&Retain(retain.clone())));
    }
    if is_timed(rule) && rule.when.zone != *common {
        block.insert("timeZone".to_owned(), rule.when.zone.to_string().into());
    }
    block.into()
}

impl Serialize for Rules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let timed = self.0.iter().filter(|rule| is_timed(rule));
        let mut zones: Vec<Zone> = timed.map(|rule| rule.when.zone.clone()).collect();
        zones.dedup();
        let common = zones.pop().filter(|_| zones.is_empty()).unwrap_or_default();
        let mut fields = Map::new();
        for (index, (name, _)) in BLOCKS.iter().enumerate() {
            let rules = self.0.iter().filter(|rule| block_index(&rule.when.when) == index);
            let blocks: Vec<Value> = rules.map(|rule| block_of(rule, &common)).collect();
            if !blocks.is_empty() {
                let list = one_as_value(&blocks, serde_json::value::Serializer);
                fields.insert((*name).to_owned(), list.unwrap_or_default());
            }
        }
        if common != Zone::utc() {
            fields.insert("timeZone".to_owned(), common.to_string().into());
        }
        fields.serialize(serializer)
    }
}

impl JsonSchema for Rules {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Rules".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (zone, retain) = (generator.subschema_for::<Zone>(), generator.subschema_for::<Retain>());
        let text = json!({ "type": ["string", "integer"] });
        let block = |fields: &[&str]| {
            let mut properties: Map<String, Value> =
                fields.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
            properties.insert("retain".to_owned(), json!(retain));
            properties.insert("timeZone".to_owned(), json!(zone));
            let one = json!({ "type": "object", "properties": properties, "required": fields });
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        };
        let mut blocks: Map<String, Value> =
            BLOCKS.iter().map(|(name, fields)| ((*name).to_owned(), block(fields))).collect();
        blocks.insert("timeZone".to_owned(), json!(zone));
        json_schema!({ "type": "object", "properties": blocks })
    }
}
