//! `blockctl cloudsnap schedules …`, `cloudsnap history` and `sched-policy …`

use crate::commands::cloudsnap::args::WaitArg;
use blockd_api::{
    CredentialRef, GroupName, LabelSelector, RuleName, VolumeRef,
    schedules::{PolicyName, Priority, RetainAt, Rule},
};
use blockd_schedule::{Recurrence, Retention, ScheduleError, When, Zone};
use clap::{Args, Subcommand, ValueEnum};

const CREATE_HELP: &str = "\
Runs missed while the daemon was down or the host was suspended are made up for by one run. \
Backups of a volume never overlap; a run whose predecessor is active is skipped, with a note in \
`cloudsnap history`. The newest --max backups are kept, and the last restorable one always.

With --local-keep-…, a local snapshot of each freeze stays on this host under its own retention; \
without --cred-id, only local snapshots are made. Backups of a deleted schedule stay. Backups of a \
time that was removed from the schedule or its policy follow the retention that this time had; \
`schedules retention` shows it.

Examples:
  blockctl cloudsnap schedules create db --daily 21:00 --max 15 --cred-id nas
  blockctl cs sched create db --periodic 60 --local-keep-last 24 --local-keep-daily 3 --cred-id nas --max 14
  blockctl cs sched create db --daily 21:00 --cred-id nas --cred-id offsite --keep-at offsite:monthly=12
  blockctl cs sched create db --periodic 15 --local-keep-last 96
  blockctl cs sched create --label app=web --periodic 60 --monthly 1@03:00 --time-zone Europe/Berlin
  blockctl cs sched create --group shop --cron '30 2 * * 1-5' --keep-daily 7 --keep-weekly 4
  blockctl cs sched create --group pg --daily 02:15 --rule pg
  blockctl cs sched create -v db --policy gold --cred-id nas --cred-id offsite --paused";

const UPDATE_HELP: &str = "\
Given times replace all times of the schedule.

Examples:
  blockctl cloudsnap schedules update --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1 --max 30
  blockctl cs sched update --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1 --daily 22:00";

const POLICY_HELP: &str = "\
The number after the comma (a semicolon in expressions) is the number of kept backups of this \
rule. Without it, they count with the others of the schedule (--max).

Examples:
  blockctl sched-policy create gold --periodic 60,24 --daily 22:14,7 --weekly Thursday@22:13,5 --monthly 14@20:05,12
  blockctl sched-policy create nights --cron '30 2 * * 1,3;10'";

/// Subcommands of `cloudsnap schedules`.
#[derive(Debug, Subcommand)]
pub enum SchedulesCommand {
    /// Create a backup schedule
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(Box<CreateArgs>),
    /// List backup schedules
    #[command(
        visible_alias = "l",
        after_help = "Examples:\n  blockctl cloudsnap schedules list\n  blockctl -j cs sched list"
    )]
    List,
    /// Change a backup schedule
    #[command(after_help = UPDATE_HELP)]
    Update(Box<UpdateArgs>),
    /// Pause a schedule
    #[command(
        after_help = "Examples:\n  blockctl cloudsnap schedules pause --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1"
    )]
    Pause(UuidArg),
    /// Resume a schedule; skipped runs are not made up for
    #[command(
        after_help = "Examples:\n  blockctl cloudsnap schedules resume --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1"
    )]
    Resume(UuidArg),
    /// Run a schedule now
    #[command(
        after_help = "Examples:\n  blockctl cloudsnap schedules run-now 078557a3-26c7-49b1-9822-34e6f816c2d1\n  blockctl cs sched run-now 0785 --wait"
    )]
    RunNow(RunNowArgs),
    /// Show what retention keeps and deletes, and why
    #[command(
        visible_alias = "dry-run",
        after_help = "Examples:\n  blockctl cloudsnap schedules retention --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1"
    )]
    Retention(UuidArg),
    /// Delete a backup schedule; its backups stay
    #[command(
        visible_alias = "d",
        after_help = "Examples:\n  blockctl cloudsnap schedules delete --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1"
    )]
    Delete(UuidArg),
}

/// Subcommands of `sched-policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Create a schedule policy
    #[command(visible_alias = "c", after_help = POLICY_HELP)]
    Create(PolicyArgs),
    /// List the schedule policies
    #[command(visible_alias = "l", after_help = "Examples:\n  blockctl sched-policy list")]
    List,
    /// Show a schedule policy
    #[command(after_help = "Examples:\n  blockctl sched-policy inspect gold")]
    Inspect(PolicyNameArg),
    /// Change the rules of a schedule policy
    #[command(visible_alias = "u", after_help = POLICY_HELP)]
    Update(PolicyArgs),
    /// Delete an unused schedule policy
    #[command(visible_alias = "d", after_help = "Examples:\n  blockctl sched-policy delete gold")]
    Delete(PolicyNameArg),
}

/// Times; each option may be repeated.
#[derive(Debug, Default, Args)]
pub struct TimeArgs {
    /// Interval in minutes; in a policy, MINUTES,KEPT
    #[arg(short, long, value_name = "MINUTES")]
    pub periodic: Vec<String>,
    /// Daily
    #[arg(short, long, value_name = "HH:MM")]
    pub daily: Vec<String>,
    /// Weekly
    #[arg(short, long, value_name = "WEEKDAY@HH:MM")]
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
                    expected: "one number of minutes, and --max or --keep-… for how many are kept; behind a comma that stands in a policy only (`sched-policy create`, --policy)".to_owned(),
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
                expected: format!("{given}, as --time-zone says, or nothing: drop one of them"),
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
        let retention = Retention {
            keep_last: self.max.unwrap_or(0),
            keep_hourly: self.keep_hourly.unwrap_or(0),
            keep_daily: self.keep_daily.unwrap_or(0),
            keep_weekly: self.keep_weekly.unwrap_or(0),
            keep_monthly: self.keep_monthly.unwrap_or(0),
            keep_yearly: self.keep_yearly.unwrap_or(0),
            zone: zone.clone(),
        };
        (self.keep_all || !retention.keeps_all()).then_some(retention)
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
        let given = [
            self.max,
            self.keep_hourly,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
            self.keep_yearly,
        ];
        given.iter().any(Option::is_some).then_some(patched)
    }
}

/// Retention of local snapshots; none are kept without these options.
#[derive(Debug, Default, Args)]
pub struct LocalArgs {
    /// Keep the newest N local snapshots
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
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
    /// Returns the same as [`RetainArgs::nothing`].
    pub fn nothing(&self) -> Option<&'static str> {
        self.as_retain().nothing()
    }

    fn as_retain(&self) -> RetainArgs {
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

    /// Returns the given retention; `None` without options.
    pub fn retention(&self, zone: &Zone) -> Option<Retention> {
        self.as_retain().retention(zone)
    }

    /// Returns the current retention with the given changes; `None` without options.
    pub fn patch(&self, now: Option<&Retention>, zone: &Zone) -> Option<Retention> {
        match now {
            Some(now) => self.as_retain().patch(now),
            None => self.retention(zone),
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
        let cred_id = place.parse().map_err(|error: blockd_api::NameError| error.to_string())?;
        let retain = retain.parse().map_err(|error: blockd_schedule::RetentionError| error.to_string())?;
        Ok(Self(RetainAt { cred_id, retain }))
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

/// `schedules create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name or id of the volume
    #[arg(value_name = "VOLUME", required_unless_present_any = ["volume", "group", "label"], conflicts_with_all = ["volume", "group", "label"])]
    source: Option<VolumeRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "VOLUME", conflicts_with_all = ["group", "label"])]
    volume: Option<VolumeRef>,
    /// Volumes of this group at each run, frozen together
    #[arg(long, value_name = "GROUP", conflicts_with = "label")]
    pub group: Option<GroupName>,
    /// Volumes with these labels at each run, frozen separately
    #[arg(long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// Name or UUID of the credential; repeat for several; optional if there is one
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
    /// Schedule policy whose rules apply too
    #[arg(long, value_name = "NAME")]
    pub policy: Option<PolicyName>,
    /// Retention.
    #[command(flatten)]
    pub retain: RetainArgs,
    /// Retention of one location, such as offsite:last=30,monthly=12 or offsite:30
    #[arg(long, value_name = "CREDENTIALS:RETENTION")]
    pub keep_at: Vec<KeepAt>,
    /// Retention of local snapshots.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Always make full backups
    #[arg(short, long)]
    pub full: bool,
    /// Maximum start delay in seconds, constant for a schedule, at most half of the interval
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub jitter: u32,
    /// Priority of runs
    #[arg(long, value_enum, default_value_t = PriorityArg::Normal)]
    pub priority: PriorityArg,
    /// Use this rule instead of the volumes' rules
    #[arg(long, value_name = "NAME")]
    pub rule: Option<RuleName>,
    /// Pause a schedule
    #[arg(long)]
    pub paused: bool,
}

impl CreateArgs {
    /// Returns the volume, from the argument or the option.
    pub fn volume(&self) -> Option<VolumeRef> {
        self.source.clone().or_else(|| self.volume.clone())
    }
}

/// `schedules update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Target.
    #[command(flatten)]
    pub uuid: UuidArg,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
    /// Another schedule policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<PolicyName>,
    /// Retention.
    #[command(flatten)]
    pub retain: RetainArgs,
    /// Retention of one location; the others follow the schedule
    #[arg(long, value_name = "CREDENTIALS:RETENTION")]
    pub keep_at: Vec<KeepAt>,
    /// Retention of local snapshots.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Stop making local snapshots; existing ones stay
    #[arg(long, conflicts_with_all = ["local_keep_last", "local_keep_hourly", "local_keep_daily", "local_keep_weekly", "local_keep_monthly", "local_keep_yearly", "local_keep_all"])]
    pub no_local: bool,
    /// Always make full backups
    #[arg(short, long, value_name = "BOOL")]
    pub full: Option<bool>,
    /// Maximum start delay in seconds, at most half of the interval
    #[arg(long, value_name = "SECONDS")]
    pub jitter: Option<u32>,
    /// Priority of runs
    #[arg(long, value_enum)]
    pub priority: Option<PriorityArg>,
    /// Use this rule instead of the volumes' rules
    #[arg(long, value_name = "NAME")]
    pub rule: Option<RuleName>,
    /// Use the volumes' rules
    #[arg(long, conflicts_with = "rule")]
    pub no_rule: bool,
}

/// Schedule argument.
#[derive(Clone, Debug, Args)]
pub struct UuidArg {
    /// UUID or id prefix of the schedule
    #[arg(value_name = "UUID", value_parser = parse_uuid, required_unless_present = "uuid", conflicts_with = "uuid")]
    schedule: Option<String>,
    /// The same, as an option
    #[arg(short, long, value_name = "UUID", value_parser = parse_uuid)]
    uuid: Option<String>,
}

impl UuidArg {
    /// Returns the schedule, from the argument or the option; the parser requires one.
    pub fn uuid(&self) -> &str {
        self.schedule.as_deref().or(self.uuid.as_deref()).unwrap_or_default()
    }
}

/// `schedules run-now`
#[derive(Debug, Args)]
pub struct RunNowArgs {
    /// Target.
    #[command(flatten)]
    pub uuid: UuidArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

fn parse_uuid(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let hex = |c: char| c.is_ascii_hexdigit() || c == '-';
    match (1..=36).contains(&text.len()) && text.chars().all(hex) {
        true => Ok(text),
        false => Err("expected the UUID of a schedule, as `cloudsnap schedules list` shows it".to_owned()),
    }
}

/// `cloudsnap history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only runs of this volume
    #[arg(short, long, value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Only runs of this schedule, by UUID or id prefix; it may be deleted
    #[arg(short, long, value_name = "UUID", value_parser = parse_uuid)]
    pub uuid: Option<String>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
}

/// Policy arguments.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Name of the policy
    #[arg(value_name = "NAME")]
    pub name: PolicyName,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
}

/// Policy name argument.
#[derive(Debug, Args)]
pub struct PolicyNameArg {
    /// Name of the policy
    #[arg(value_name = "NAME")]
    pub name: PolicyName,
}
