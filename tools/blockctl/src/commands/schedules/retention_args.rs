//! Options for the times, the retention and the priority of a schedule.

use blockd_api::schedules::{Priority, RetainAt, Rule};
use blockd_schedule::{Recurrence, Retention, ScheduleError, When, Zone};
use clap::{Args, ValueEnum};

/// Times; each option may be repeated.
#[derive(Debug, Default, Args)]
pub struct TimeArgs {
    /// Interval in minutes, counted in UTC; in a policy, MINUTES,KEPT
    #[arg(short, long, value_name = "MINUTES")]
    pub periodic: Vec<String>,
    /// Daily
    #[arg(short, long, value_name = "HH:MM")]
    pub daily: Vec<String>,
    /// Weekly; with /2 every second week, with /2+1 the other ones
    #[arg(short, long, value_name = "WEEKDAY@HH:MM[/WEEKS]")]
    pub weekly: Vec<String>,
    /// Monthly; the last day of shorter months
    #[arg(short, long, value_name = "DAY@HH:MM")]
    pub monthly: Vec<String>,
    /// Cron expression: minute hour day-of-month month day-of-week
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: Vec<String>,
    /// systemd calendar expression, such as `Mon..Fri *-*-* 02:30` or `*-*-* 02:30 Europe/Berlin`
    #[arg(long, value_name = "EXPRESSION")]
    pub on_calendar: Vec<String>,
    /// Time zone, such as Europe/Berlin [default: UTC, or unchanged]
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<Zone>,
}

impl TimeArgs {
    /// Returns the rules. With `with_retain`, the kept number follows a comma, or a semicolon after an
    /// expression.
    pub fn rules(&self, with_retain: bool) -> Result<Vec<Rule>, ScheduleError> {
        self.rules_in(&self.zone(), with_retain)
    }

    /// Returns the time zone.
    pub fn zone(&self) -> Zone {
        self.time_zone.clone().unwrap_or_else(Zone::utc)
    }

    /// Returns [`TimeArgs::rules`] in another time zone.
    pub fn rules_in(&self, zone: &Zone, with_retain: bool) -> Result<Vec<Rule>, ScheduleError> {
        type Parse = fn(&str) -> Result<When, ScheduleError>;
        // Expressions contain commas.
        let kinds: [(&str, &[String], Parse, char); 6] = [
            ("--periodic", &self.periodic, When::periodic, ','),
            ("--daily", &self.daily, When::daily, ','),
            ("--weekly", &self.weekly, When::weekly, ','),
            ("--monthly", &self.monthly, When::monthly, ','),
            ("--cron", &self.cron, When::cron, ';'),
            ("--on-calendar", &self.on_calendar, When::on_calendar, ';'),
        ];
        let mut rules = Vec::new();
        for (flag, texts, parse, separator) in kinds {
            // Without retention, a comma separates times. After minutes, a policy has the kept number there.
            if let (false, "--periodic", Some(given)) =
                (with_retain, flag, texts.iter().find(|text| text.contains(',')))
            {
                return Err(ScheduleError::Part {
                    part: "interval",
                    given: given.clone(),
                    expected: "one number of minutes, and the retention with --max or --keep-…; MINUTES,KEPT is valid in policies only (`sched-policy create`, --policy)".to_owned(),
                });
            }
            let texts = texts.iter().flat_map(|text| {
                let is_list = !with_retain && separator == ',';
                text.split(move |c| is_list && c == ',')
            });
            for text in texts {
                let split = text.rsplit_once(separator).filter(|_| with_retain);
                let retain = split.and_then(|(_, count)| Retention::max(count.trim().parse().ok()?).ok());
                let when = match (&retain, split) {
                    (Some(_), Some((when, _))) => when,
                    _ => text,
                };
                let when = match flag {
                    "--on-calendar" => self.on_calendar(when, zone)?,
                    _ => Recurrence { when: parse(when)?, zone: zone.clone() },
                };
                rules.push(Rule { when, retain });
            }
        }
        Ok(rules)
    }
}

impl TimeArgs {
    /// Parses a systemd calendar expression with an optional time zone at its end.
    fn on_calendar(&self, text: &str, zone: &Zone) -> Result<Recurrence, ScheduleError> {
        if let (Some(own), Some(given)) = (Recurrence::zone_of(text)?, &self.time_zone)
            && own != *given
        {
            return Err(ScheduleError::Part {
                part: "time zone",
                given: own.to_string(),
                expected: format!("{given} as in --time-zone, or omit one of them"),
            });
        }
        Recurrence::on_calendar(text, zone)
    }
}

/// Retention of backups.
#[derive(Debug, Default, Args)]
pub struct RetainArgs {
    /// Keep the newest N [default: 7 without another --keep option]
    #[arg(short = 'x', long, visible_alias = "keep-last", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// The same for weeks
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
    /// Delete nothing
    #[arg(long, conflicts_with_all = ["max", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"])]
    pub keep_all: bool,
}

impl RetainArgs {
    /// Returns the given retention; `None` without options.
    pub fn retention(&self, zone: &Zone) -> Option<Retention> {
        let patched = self.patch(&Retention { zone: zone.clone(), ..Retention::default() });
        patched.filter(|retention| self.keep_all || !retention.keeps_all())
    }

    /// Returns the first option with the value 0, without dashes: it has no effect on a new schedule.
    pub fn nothing(&self) -> Option<&'static str> {
        let numbers = [
            ("keep-hourly", self.keep_hourly),
            ("keep-daily", self.keep_daily),
            ("keep-weekly", self.keep_weekly),
            ("keep-monthly", self.keep_monthly),
            ("keep-yearly", self.keep_yearly),
        ];
        numbers.into_iter().find_map(|(flag, number)| (number == Some(0)).then_some(flag))
    }

    /// Returns the current retention with the given changes; `None` without options.
    pub fn patch(&self, now: &Retention) -> Option<Retention> {
        if self.keep_all {
            return Some(Retention { zone: now.zone.clone(), ..Retention::default() });
        }
        let patched = Retention {
            keep_last: self.max.unwrap_or(now.keep_last),
            keep_hourly: self.keep_hourly.unwrap_or(now.keep_hourly),
            keep_daily: self.keep_daily.unwrap_or(now.keep_daily),
            keep_weekly: self.keep_weekly.unwrap_or(now.keep_weekly),
            keep_monthly: self.keep_monthly.unwrap_or(now.keep_monthly),
            keep_yearly: self.keep_yearly.unwrap_or(now.keep_yearly),
            zone: now.zone.clone(),
        };
        let Self { max, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, .. } = self;
        let given = [max, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly];
        given.iter().any(|count| count.is_some()).then_some(patched)
    }
}

/// Retention of local snapshots; none are kept without these options.
#[derive(Debug, Default, Args)]
pub struct LocalArgs {
    /// Keep the newest N local snapshots
    #[arg(long, visible_alias = "keep-local", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub local_keep_last: Option<u32>,
    /// Keep the newest local snapshot of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    pub local_keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N")]
    pub local_keep_daily: Option<u32>,
    /// The same for weeks
    #[arg(long, value_name = "N")]
    pub local_keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N")]
    pub local_keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N")]
    pub local_keep_yearly: Option<u32>,
    /// Keep all local snapshots
    #[arg(long, conflicts_with_all = ["local_keep_last", "local_keep_hourly", "local_keep_daily", "local_keep_weekly", "local_keep_monthly", "local_keep_yearly"])]
    pub local_keep_all: bool,
}

impl LocalArgs {
    /// Returns the options in the form of those of backups.
    pub fn as_retain(&self) -> RetainArgs {
        RetainArgs {
            max: self.local_keep_last,
            keep_hourly: self.local_keep_hourly,
            keep_daily: self.local_keep_daily,
            keep_weekly: self.local_keep_weekly,
            keep_monthly: self.local_keep_monthly,
            keep_yearly: self.local_keep_yearly,
            keep_all: self.local_keep_all,
        }
    }
}

/// Retention in one location: `CREDENTIALS:RETENTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAt(pub RetainAt);

impl std::str::FromStr for KeepAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, retain) = text
            .split_once(':')
            .ok_or("expected CREDENTIALS:RETENTION, such as offsite:last=30,monthly=12")?;
        let credential = place.parse().map_err(|error: blockd_api::NameError| error.to_string())?;
        let retain = retain.parse().map_err(|error: blockd_schedule::RetentionError| error.to_string())?;
        Ok(Self(RetainAt { credential, retain }))
    }
}

/// Priority of runs.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PriorityArg {
    /// After all others
    Low,
    /// Normal
    Normal,
    /// Before all others
    High,
}

impl From<PriorityArg> for Priority {
    fn from(priority: PriorityArg) -> Self {
        match priority {
            PriorityArg::Low => Self::Low,
            PriorityArg::Normal => Self::Normal,
            PriorityArg::High => Self::High,
        }
    }
}
