//! Schedules: a policy or times of their own, and what is backed up where to.

use super::{
    Fields,
    backup::Volumes,
    exec_rule, reclaim_policy,
    rules::{self, DEFAULT_RETAIN, Rules},
    show_rule,
};
use blockd_api::{
    CredentialName, CredentialRef, ObjectName, RuleName, VolumeRef,
    schedules::{CreateSchedule, PolicyName, Priority, RetainAt, Schedule, Selector, UpdateSchedule},
};
use blockd_schedule::{Jitter, Retention};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduled {
    /// When: by this policy.
    pub policy: Option<PolicyName>,
    /// When besides.
    pub rules: Rules,
    /// There are no runs for now.
    pub suspend: bool,
    /// How many are kept of those whose rule does not say it.
    pub retain: Retention,
    /// How much later than its time a run may begin, in seconds.
    pub jitter_s: u32,
    /// Which runs go first.
    pub priority: Priority,
    /// Where to.
    pub locations: Vec<CredentialName>,
    /// Of what.
    pub volumes: Volumes,
    /// Every backup is full.
    pub full: bool,
    /// A rule that is followed around freezes.
    pub rule: Option<RuleName>,
    /// Local snapshots are kept as well, and so many of them.
    pub local: Option<Retention>,
    /// Places that keep other backups, and which.
    pub retain_at: BTreeMap<CredentialName, Retention>,
}

impl Scheduled {
    /// A schedule of the daemon's; `None` if it names what is not there.
    pub fn of(
        schedule: &Schedule,
        volume: impl Fn(&VolumeRef) -> Option<blockd_api::VolumeName>,
        location: impl Fn(&uuid::Uuid) -> Option<CredentialName>,
    ) -> Option<Self> {
        let volumes = match &schedule.selector {
            Selector { volume: Some(one), .. } => Volumes::One(volume(one)?),
            Selector { group: Some(group), .. } => Volumes::Group(group.clone()),
            Selector { label: Some(label), .. } => Volumes::Label(label.clone()),
            _ => return None,
        };
        let retain_at = schedule.retain_at.iter().map(|at| match &at.cred_id {
            CredentialRef::Id(uuid) => Some((location(uuid)?, at.retain.clone())),
            CredentialRef::Name(name) => Some((name.clone(), at.retain.clone())),
        });
        Some(Self {
            retain_at: retain_at.collect::<Option<_>>()?,
            policy: schedule.policy.clone(),
            rules: Rules::of(&schedule.rules),
            suspend: schedule.paused,
            retain: schedule.retain.clone(),
            jitter_s: schedule.jitter_seconds.max_s,
            priority: schedule.priority,
            locations: schedule.credentials.iter().map(location).collect::<Option<_>>()?,
            volumes,
            full: schedule.full,
            rule: schedule.rule.clone(),
            local: schedule.local.clone(),
        })
    }

    /// As it is written.
    pub fn view(&self) -> Value {
        let mut template = Map::new();
        let locations: Vec<&str> = self.locations.iter().map(CredentialName::as_str).collect();
        let location = match locations.as_slice() {
            [location] => json!(location),
            several => json!(several),
        };
        if !self.locations.is_empty() {
            template.insert("backupLocation".to_owned(), location);
        }
        self.volumes.show(&mut template);
        template.insert("full".to_owned(), self.full.into());
        show_rule(self.rule.as_ref(), &mut template);
        let mut view = Map::new();
        if let Some(policy) = &self.policy {
            view.insert("schedulePolicyName".to_owned(), policy.as_str().into());
        }
        if !self.rules.is_empty() {
            view.insert("schedule".to_owned(), self.rules.view());
        }
        view.insert("suspend".to_owned(), self.suspend.into());
        // What nobody says of a schedule by a policy is said by that.
        if self.policy.is_none() || self.retain != Retention::default() {
            view.insert("retain".to_owned(), rules::retain_view(&self.retain));
        }
        let retain_at = self.retain_at.iter().map(
            |(place, retain)| json!({ "backupLocation": place.as_str(), "retain": rules::retain_view(retain) }),
        );
        if !self.retain_at.is_empty() {
            view.insert("retainAt".to_owned(), retain_at.collect());
        }
        if let Some(local) = &self.local {
            view.insert("localSnapshots".to_owned(), json!({ "retain": rules::retain_view(local) }));
        }
        view.insert("jitterSeconds".to_owned(), self.jitter_s.into());
        view.insert("priority".to_owned(), self.priority.as_str().into());
        view.insert("template".to_owned(), json!({ "spec": template }));
        view.into()
    }

    /// What makes it.
    pub fn create(&self, name: &ObjectName) -> CreateSchedule {
        let mut selector = Selector::default();
        match &self.volumes {
            Volumes::One(volume) => selector.volume = Some(VolumeRef::Name(volume.clone())),
            Volumes::Group(group) => selector.group = Some(group.clone()),
            Volumes::Label(label) => selector.label = Some(label.clone()),
        }
        CreateSchedule {
            name: Some(name.clone()),
            selector,
            cred_ids: self.locations.iter().cloned().map(CredentialRef::Name).collect(),
            rules: self.rules.to_api(),
            policy: self.policy.clone(),
            retain: self.retain.clone(),
            local: self.local.clone(),
            retain_at: self.retain_at(),
            full: self.full,
            jitter_seconds: Jitter { max_s: self.jitter_s },
            priority: self.priority,
            rule: self.rule.clone(),
            paused: self.suspend,
        }
    }

    /// What single places keep, as the daemon takes it.
    pub fn retain_at(&self) -> Vec<RetainAt> {
        let one = |(place, retain): (&CredentialName, &Retention)| RetainAt {
            cred_id: CredentialRef::Name(place.clone()),
            retain: retain.clone(),
        };
        self.retain_at.iter().map(one).collect()
    }

    /// What makes another one like this; what is alike is left out, so that its runs go on.
    pub fn update(&self, is: &Self) -> UpdateSchedule {
        fn changed<T: Clone + PartialEq>(is: &T, should: &T) -> Option<T> {
            (is != should).then(|| should.clone())
        }
        UpdateSchedule {
            rules: changed(&is.rules, &self.rules).map(|rules| rules.to_api()),
            policy: if is.policy == self.policy { None } else { self.policy.clone() },
            retain: changed(&is.retain, &self.retain),
            local: changed(&is.local, &self.local),
            retain_at: (is.retain_at != self.retain_at).then(|| self.retain_at()),
            full: changed(&is.full, &self.full),
            jitter_seconds: changed(&is.jitter_s, &self.jitter_s).map(|max_s| Jitter { max_s }),
            priority: changed(&is.priority, &self.priority),
            rule: changed(&is.rule, &self.rule),
            paused: changed(&is.suspend, &self.suspend),
        }
    }

    /// What of another one cannot be made like this, by its path.
    pub fn fixed(&self, is: &Self) -> Vec<&'static str> {
        let mut fixed = Vec::new();
        if is.locations != self.locations {
            fixed.push("spec.template.spec.backupLocation");
        }
        if is.volumes != self.volumes {
            fixed.push("spec.template.spec.volume");
        }
        if is.policy.is_some() && self.policy.is_none() {
            fixed.push("spec.schedulePolicyName");
        }
        fixed
    }
}

/// Reads what is below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Scheduled> {
    if !fields.has("spec") {
        fields.missing("spec");
    }
    let mut spec = fields.fields("spec")?;
    let line = spec.line;
    let has_time = spec.has("schedulePolicyName") || spec.has("schedule");
    let policy: Option<PolicyName> = spec.parsed("schedulePolicyName");
    if !has_time {
        spec.wrong(line, "schedulePolicyName", "this says no time: give schedulePolicyName or schedule");
    }
    let rules = spec.fields("schedule").map(|mut schedule| {
        let rules = rules::read(&mut schedule);
        schedule.finish();
        rules
    });
    let suspend = spec.flag("suspend").unwrap_or(false);
    // A policy says itself what it keeps.
    let default = match &policy {
        None => Retention { keep_last: DEFAULT_RETAIN, ..Retention::default() },
        Some(_) => Retention::default(),
    };
    let retain = rules::read_retain(&mut spec).unwrap_or(default);
    let local = spec.fields("localSnapshots").map(|mut local| {
        if !local.has("retain") {
            local.missing("retain");
        }
        let retain = rules::read_retain(&mut local).unwrap_or_default();
        local.finish();
        retain
    });
    let retain_at = read_retain_at(&mut spec);
    let jitter_s = spec.number("jitterSeconds", 0).unwrap_or(0);
    let priority = match spec.text("priority").as_deref() {
        None => Priority::default(),
        Some(word) => Priority::ALL.into_iter().find(|one| one.as_str() == word).unwrap_or_else(|| {
            spec.wrong(line, "priority", format!("{word:?} is none of low, normal and high"));
            Priority::default()
        }),
    };
    if !spec.has("template") {
        spec.missing("template");
    }
    let template = spec.fields("template").and_then(|mut template| {
        if !template.has("spec") {
            template.missing("spec");
        }
        let inner = template.fields("spec");
        template.finish();
        inner
    });
    spec.finish();
    let mut template = template?;
    let locations: Vec<CredentialName> = template.each_parsed("backupLocation");
    if locations.is_empty() && local.is_none() {
        template.missing("backupLocation");
    }
    for (place, (line, path, _)) in &retain_at {
        if !locations.contains(place) {
            let what = format!("nothing is backed up to {place} by this schedule: name one of its places");
            template.reading.wrong(*line, path, what);
        }
    }
    let volumes = Volumes::read(&mut template);
    let full = template.flag("full").unwrap_or(false);
    let rule = exec_rule(&mut template);
    let _ = reclaim_policy(&mut template, false);
    template.finish();
    Some(Scheduled {
        policy,
        rules: rules.unwrap_or_default(),
        suspend,
        retain,
        jitter_s,
        priority,
        locations,
        volumes: volumes?,
        full,
        rule,
        local,
        retain_at: retain_at.into_iter().map(|(place, (_, _, retain))| (place, retain)).collect(),
    })
}

/// Takes what is kept in single places, each with the line and the path of the place.
fn read_retain_at(spec: &mut Fields<'_>) -> BTreeMap<CredentialName, (usize, String, Retention)> {
    let mut found = BTreeMap::new();
    for (path, node) in spec.each("retainAt") {
        let Some(mut one) = Fields::of(node, path, spec.reading) else { continue };
        let (line, path) = (one.line, format!("{}.backupLocation", one.path));
        let place: Option<CredentialName> = one.required("backupLocation");
        if !one.has("retain") {
            one.missing("retain");
        }
        let retain = rules::read_retain(&mut one);
        one.finish();
        let (Some(place), Some(retain)) = (place, retain) else { continue };
        if found.contains_key(&place) {
            spec.reading.wrong(line, &path, format!("{place} is there already"));
        }
        found.insert(place, (line, path, retain));
    }
    found
}
