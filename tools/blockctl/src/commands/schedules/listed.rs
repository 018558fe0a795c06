//! Filters and orders of the lists of schedules, runs and policies.

use super::tables::{called, called_in, selected};
use crate::commands::{
    filters::NamePattern,
    list_filter::{LabelOption, Listed, Sort},
};
use blockd_api::{
    LabelSelector, VolumeId,
    schedules::{Policy, Run, Schedule},
};
use jiff::Timestamp;
use std::{cmp::Ordering, collections::BTreeSet};

impl Listed for Schedule {
    const NAME_HELP: &'static str = "Only schedules of this name; * matches any characters";
    const LABEL: LabelOption =
        LabelOption::OfVolume("Only schedules with all these labels, their own, of their volume or selector");
    const SORTS: &'static [Sort] = &[Sort::Created, Sort::Name, Sort::Volume, Sort::Next];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        self.name.as_ref().is_some_and(|name| pattern.matches(name.as_str()))
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.created_at)
    }

    fn is_labelled(&self, label: &LabelSelector, volumes: &BTreeSet<VolumeId>) -> bool {
        self.labels.matches(label)
            || self.selector.volume_id.is_some_and(|id| volumes.contains(&id))
            || self.selector.label.as_ref().is_some_and(|own| own.labels().matches(label))
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => called(self).cmp(&called(other)),
            Sort::Volume => selected(&self.selector).cmp(&selected(&other.selector)),
            // Those without a next run are the last ones.
            Sort::Next => {
                let next = |one: &Self| (one.next_run_at.is_none(), one.next_run_at);
                next(self).cmp(&next(other))
            }
            _ => self.created_at.cmp(&other.created_at),
        }
    }
}

impl Listed for Run {
    const NAME_HELP: &'static str = "Only runs of schedules of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::OfVolume("Only runs of volumes with all these labels");
    const SORTS: &'static [Sort] = &[Sort::Started, Sort::Name, Sort::Volume, Sort::Status];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        self.schedule_name.as_ref().is_some_and(|name| pattern.matches(name.as_str()))
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.started_at)
    }

    fn is_labelled(&self, _label: &LabelSelector, volumes: &BTreeSet<VolumeId>) -> bool {
        self.volume_id.is_some_and(|id| volumes.contains(&id))
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => called_in(self).cmp(&called_in(other)),
            Sort::Volume => self.volume_name.cmp(&other.volume_name),
            Sort::Status => self.state.as_str().cmp(other.state.as_str()),
            // The order of the daemon: newest first.
            _ => Ordering::Equal,
        }
    }
}

impl Listed for Policy {
    const NAME_HELP: &'static str = "Only policies of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::Absent;
    const SORTS: &'static [Sort] = &[];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        None
    }
}
