//! When, and how many are kept: the blocks `interval`, `daily`, `weekly`, `monthly`, `cron` and `calendar`.

use super::{Fields, node::Node};
use blockd_api::schedules::Rule;
use blockd_schedule::{Recurrence, Retention, ScheduleError, When, Zone};
use serde_json::{Map, Value, json};

/// Rules in the order in which they are written here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

/// What a block says, and how that is read.
struct Block {
    name: &'static str,
    /// Its fields, in the order in which the text of a time has them.
    fields: &'static [&'static str],
    parse: fn(&[String]) -> Result<When, ScheduleError>,
}

const BLOCKS: [Block; 6] = [
    Block { name: "interval", fields: &["intervalMinutes"], parse: |words| When::periodic(&words[0]) },
    Block { name: "daily", fields: &["time"], parse: |words| When::daily(&words[0]) },
    Block { name: "weekly", fields: &["day", "time"], parse: |words| When::weekly(&words.join("@")) },
    Block { name: "monthly", fields: &["date", "time"], parse: |words| When::monthly(&words.join("@")) },
    Block { name: "cron", fields: &["expression"], parse: |words| When::cron(&words[0]) },
    Block { name: "calendar", fields: &["expression"], parse: |words| When::on_calendar(&words[0]) },
];

/// What stays where neither the rule nor anything else says it.
pub const DEFAULT_RETAIN: u32 = 7;

impl Rules {
    /// Of a policy or schedule as the daemon has it.
    pub fn of(rules: &[Rule]) -> Self {
        let mut rules = rules.to_vec();
        for rule in &mut rules {
            // Minutes are the same everywhere.
            if let When::Periodic { .. } = rule.when.when {
                rule.when.zone = Zone::utc();
            }
        }
        rules.sort_by_key(|rule| (block_of(&rule.when.when), rule.when.to_string()));
        Self(rules)
    }

    /// As the daemon takes them.
    pub fn to_api(&self) -> Vec<Rule> {
        self.0.clone()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are written.
    pub fn view(&self) -> Value {
        let mut view = Map::new();
        let timed = self.0.iter().filter(|rule| !matches!(rule.when.when, When::Periodic { .. }));
        let mut zones: Vec<&Zone> = timed.map(|rule| &rule.when.zone).collect();
        zones.dedup();
        let common = match zones.as_slice() {
            [zone] => (*zone).clone(),
            _ => Zone::utc(),
        };
        if common != Zone::utc() {
            view.insert("timeZone".to_owned(), common.to_string().into());
        }
        for (nth, block) in BLOCKS.iter().enumerate() {
            let of_block = self.0.iter().filter(|rule| block_of(&rule.when.when) == nth);
            let mut rules: Vec<Value> = of_block.map(|rule| rule_view(block, rule, &common)).collect();
            match rules.len() {
                0 => {}
                1 => drop(view.insert(block.name.to_owned(), rules.remove(0))),
                _ => drop(view.insert(block.name.to_owned(), rules.into())),
            }
        }
        view.into()
    }
}

fn block_of(when: &When) -> usize {
    match when {
        When::Periodic { .. } => 0,
        When::Daily { .. } => 1,
        When::Weekly { .. } => 2,
        When::Monthly { .. } => 3,
        When::Cron(_) => 4,
        _ => 5,
    }
}

fn rule_view(block: &Block, rule: &Rule, common: &Zone) -> Value {
    // What follows the word of the kind, such as `Thursday@22:13`.
    let text = rule.when.when.to_string();
    let time = text.split_once(' ').map_or("", |(_, time)| time);
    let words: Vec<&str> = match block.fields {
        [_] => vec![time.strip_prefix('@').unwrap_or(time)],
        _ => time.splitn(block.fields.len(), '@').collect(),
    };
    let mut view = Map::new();
    for (field, word) in block.fields.iter().zip(words) {
        let is_number = matches!(*field, "intervalMinutes" | "date");
        let digits = word.strip_suffix("min").unwrap_or(word);
        let number = digits.parse::<u32>().ok().filter(|_| is_number);
        view.insert((*field).to_owned(), number.map_or_else(|| word.into(), Value::from));
    }
    if let Some(retain) = &rule.retain {
        view.insert("retain".to_owned(), retain_view(retain));
    }
    if rule.when.zone != *common && !matches!(rule.when.when, When::Periodic { .. }) {
        view.insert("timeZone".to_owned(), rule.when.zone.to_string().into());
    }
    view.into()
}

/// How many are kept: a number, or numbers by name.
pub fn retain_view(retain: &Retention) -> Value {
    let only_last = Retention { keep_last: retain.keep_last, ..Retention::default() };
    if *retain == only_last && retain.keep_last > 0 {
        return retain.keep_last.into();
    }
    if *retain == Retention::default() {
        return "all".into();
    }
    let mut view = Map::new();
    if retain.keeps_all() {
        view.insert("all".to_owned(), true.into());
    }
    for (name, count) in [
        ("last", retain.keep_last),
        ("hourly", retain.keep_hourly),
        ("daily", retain.keep_daily),
        ("weekly", retain.keep_weekly),
        ("monthly", retain.keep_monthly),
        ("yearly", retain.keep_yearly),
    ] {
        if count > 0 {
            view.insert(name.to_owned(), count.into());
        }
    }
    if retain.zone != Zone::utc() {
        view.insert("timeZone".to_owned(), json!(retain.zone.to_string()));
    }
    view.into()
}

/// Takes `retain`: a number, `all`, or numbers by name.
pub fn read_retain(fields: &mut Fields<'_>) -> Option<Retention> {
    use super::node::NodeValue;
    let path = format!("{}.retain", fields.path);
    let is_map = {
        let peeked = fields.peek("retain")?;
        match &peeked.value {
            NodeValue::Scalar { text, .. } if text == "all" => {
                let _ = fields.text("retain");
                return Some(Retention::default());
            }
            NodeValue::Map(_) => true,
            _ => false,
        }
    };
    if !is_map {
        return fields.number("retain", 1).map(|keep_last| Retention { keep_last, ..Retention::default() });
    }
    let mut by_name = fields.fields("retain")?;
    let all = by_name.flag("all").unwrap_or(false);
    let mut count = |name| by_name.number(name, 0).unwrap_or(0);
    let mut retain = Retention {
        keep_last: count("last"),
        keep_hourly: count("hourly"),
        keep_daily: count("daily"),
        keep_weekly: count("weekly"),
        keep_monthly: count("monthly"),
        keep_yearly: count("yearly"),
        ..Retention::default()
    };
    retain.zone = by_name.parsed("timeZone").unwrap_or_default();
    if retain.keeps_all() != all {
        let what = match all {
            true => "this keeps all, and only some: leave out `all`, or the numbers",
            false => "this keeps nothing that is named: write `all` to keep all",
        };
        by_name.reading.wrong(by_name.line, &path, what);
    }
    by_name.finish();
    Some(retain)
}

/// Takes the blocks out of fields.
pub fn read(fields: &mut Fields<'_>) -> Rules {
    let zone = fields.parsed::<Zone>("timeZone").unwrap_or_default();
    let mut rules = Vec::new();
    for block in &BLOCKS {
        for (path, node) in fields.each(block.name) {
            rules.extend(read_rule(block, node, path, &zone, fields));
        }
    }
    Rules::of(&rules)
}

fn read_rule(block: &Block, node: &Node, path: String, zone: &Zone, outer: &Fields<'_>) -> Option<Rule> {
    let mut fields = Fields::of(node, path, outer.reading)?;
    let words: Vec<Option<String>> = block.fields.iter().map(|name| fields.required_text(name)).collect();
    let retain = read_retain(&mut fields);
    let zone = fields.parsed("timeZone").unwrap_or_else(|| zone.clone());
    let (line, path, reading) = (fields.line, fields.path.clone(), fields.reading);
    fields.finish();
    let words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
    let when = match (block.name, words.as_slice()) {
        ("calendar", [expression]) => Recurrence::on_calendar(expression, &zone),
        _ => (block.parse)(&words).map(|when| Recurrence { when, zone }),
    };
    match when {
        Ok(when) => Some(Rule { when, retain }),
        Err(error) => {
            reading.wrong(line, &path, error.to_string());
            None
        }
    }
}

/// Reads what is below `policy`.
pub fn read_policy(fields: &mut Fields<'_>) -> Option<Rules> {
    if !fields.has("policy") {
        fields.missing("policy");
    }
    let mut policy = fields.fields("policy")?;
    let rules = read(&mut policy);
    if rules.is_empty() {
        policy.reading.wrong(
            policy.line,
            &policy.path,
            "this says no time: give interval, daily, weekly, monthly, cron or calendar",
        );
    }
    policy.finish();
    Some(rules)
}
