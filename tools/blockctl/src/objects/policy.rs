//! Rules of schedule policies and schedules: the blocks `interval`, `daily`, `weekly`, `monthly`, `cron` and
//! `calendar`.

use super::values::{Retain, one_or_many};
use blockd_api::schedules::Rule;
use blockd_schedule::{Recurrence, When, Zone};
use serde::{Deserialize, Serialize};

/// Rules in the order of the blocks.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Blocks", into = "Blocks")]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Orders the rules of the daemon.
    pub fn of(rules: &[Rule]) -> Self {
        let mut rules = rules.to_vec();
        for rule in &mut rules {
            // An interval is the same in every time zone.
            if let When::Periodic { .. } = rule.when.when {
                rule.when.zone = Zone::utc();
            }
        }
        rules.sort_by_key(|rule| (block_index(&rule.when.when), rule.when.to_string()));
        Self(rules)
    }

    /// Returns the rules of a request.
    pub fn to_api(&self) -> Vec<Rule> {
        self.0.clone()
    }

    /// Returns true without rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Rule as it is written; which fields belong to it depends on the name of the block.
#[derive(Clone, Default, Serialize, Deserialize)]
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
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Blocks {
    time_zone: Option<Zone>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    interval: Vec<Block>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    daily: Vec<Block>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    weekly: Vec<Block>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    monthly: Vec<Block>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    cron: Vec<Block>,
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    calendar: Vec<Block>,
}

/// Names of the blocks, in their order.
const NAMES: [&str; 6] = ["interval", "daily", "weekly", "monthly", "cron", "calendar"];

fn block_index(when: &When) -> usize {
    match when {
        When::Periodic { .. } => 0,
        When::Daily { .. } => 1,
        When::Weekly { .. } => 2,
        When::Monthly { .. } => 3,
        When::Cron(_) => 4,
        _ => 5,
    }
}

impl Blocks {
    fn lists(self) -> [Vec<Block>; 6] {
        [self.interval, self.daily, self.weekly, self.monthly, self.cron, self.calendar]
    }
}

impl Block {
    /// Returns the fields that say when, each if it is set.
    fn words(&self) -> [(&'static str, Option<String>); 5] {
        [
            ("intervalMinutes", self.interval_minutes.map(|minutes| minutes.to_string())),
            ("day", self.day.clone()),
            ("date", self.date.map(|date| date.to_string())),
            ("time", self.time.clone()),
            ("expression", self.expression.clone()),
        ]
    }

    fn rule(self, index: usize, zone: &Zone) -> Result<Rule, String> {
        let expected: &[&str] = match NAMES[index] {
            "interval" => &["intervalMinutes"],
            "daily" => &["time"],
            "weekly" => &["day", "time"],
            "monthly" => &["date", "time"],
            _ => &["expression"],
        };
        let mut words = Vec::new();
        for (name, word) in self.words() {
            match (word, expected.contains(&name)) {
                (Some(word), true) => words.push(word),
                (None, true) => return Err(format!("missing field `{name}`")),
                (Some(_), false) => return Err(format!("unknown field `{name}`")),
                (None, false) => {}
            }
        }
        let text = words.join("@");
        let zone = self.time_zone.unwrap_or_else(|| zone.clone());
        let when = match NAMES[index] {
            "interval" => When::periodic(&text),
            "daily" => When::daily(&text),
            "weekly" => When::weekly(&text),
            "monthly" => When::monthly(&text),
            "cron" => When::cron(&text),
            // The expression may name a time zone itself.
            _ => {
                let when = Recurrence::on_calendar(&text, &zone).map_err(|error| error.to_string())?;
                return Ok(Rule { when, retain: self.retain.map(|retain| retain.0) });
            }
        };
        let when = when.map_err(|error| error.to_string())?;
        Ok(Rule { when: Recurrence { when, zone }, retain: self.retain.map(|retain| retain.0) })
    }
}

impl TryFrom<Blocks> for Rules {
    type Error = String;

    fn try_from(mut blocks: Blocks) -> Result<Self, String> {
        let zone = blocks.time_zone.take().unwrap_or_default();
        let mut rules = Vec::new();
        for (index, list) in blocks.lists().into_iter().enumerate() {
            for block in list {
                let rule = block.rule(index, &zone).map_err(|error| format!("{}: {error}", NAMES[index]))?;
                rules.push(rule);
            }
        }
        Ok(Self::of(&rules))
    }
}

impl From<Rules> for Blocks {
    fn from(rules: Rules) -> Self {
        let is_timed = |rule: &&Rule| !matches!(rule.when.when, When::Periodic { .. });
        let mut zones: Vec<&Zone> = rules.0.iter().filter(is_timed).map(|rule| &rule.when.zone).collect();
        zones.dedup();
        let common = match zones.as_slice() {
            [zone] => (*zone).clone(),
            _ => Zone::utc(),
        };
        let mut blocks = Self::default();
        for rule in &rules.0 {
            let block = Block {
                retain: rule.retain.clone().map(Retain),
                time_zone: (rule.when.zone != common && is_timed(&rule)).then(|| rule.when.zone.clone()),
                ..Block::default()
            };
            blocks.add(block, &rule.when.when);
        }
        blocks.time_zone = (common != Zone::utc()).then_some(common);
        blocks
    }
}

impl Blocks {
    /// Adds a rule, with the fields that say when.
    fn add(&mut self, block: Block, when: &When) {
        // The text of a time is its kind and its fields, such as `weekly Thursday@22:13`.
        let text = when.to_string();
        let fields = text.split_once(' ').map_or("", |(_, fields)| fields);
        let (first, time) = fields.split_once('@').unwrap_or((fields, ""));
        let (list, block) = match block_index(when) {
            0 => {
                let interval_minutes = first.strip_suffix("min").unwrap_or(first).parse().ok();
                (&mut self.interval, Block { interval_minutes, ..block })
            }
            1 => (&mut self.daily, Block { time: Some(time.to_owned()), ..block }),
            2 => {
                let (day, time) = (Some(first.to_owned()), Some(time.to_owned()));
                (&mut self.weekly, Block { day, time, ..block })
            }
            3 => {
                (&mut self.monthly, Block { date: first.parse().ok(), time: Some(time.to_owned()), ..block })
            }
            4 => (&mut self.cron, Block { expression: Some(fields.to_owned()), ..block }),
            _ => (&mut self.calendar, Block { expression: Some(fields.to_owned()), ..block }),
        };
        list.push(block);
    }
}
