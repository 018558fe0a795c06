//! Options that lists share: filters and order of their entries.

use super::filters::{NamePattern, TimeFilter};
use crate::{failure::Failure, output::Context};
use blockd_api::{LabelSelector, VolumeId, operations, volumes::ListVolumes};
use clap::{
    Arg, ArgMatches, Args, Command, FromArgMatches,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
    value_parser,
};
use jiff::Timestamp;
use std::{cmp::Ordering, collections::BTreeSet, marker::PhantomData};

/// Order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Created,
    Started,
    Name,
    Volume,
    Location,
    Status,
    Size,
    Used,
    Next,
}

impl Sort {
    /// Returns the word on the command line, and its help.
    const fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Created => ("created", "Oldest first"),
            Self::Started => ("started", "Newest first"),
            Self::Name => ("name", "By name"),
            Self::Volume => ("volume", "By volume"),
            Self::Location => ("location", "By location"),
            Self::Status => ("status", "By state"),
            Self::Size => ("size", "Largest last"),
            Self::Used => ("used", "Most space on disk last"),
            Self::Next => ("next", "Earliest next run first"),
        }
    }
}

/// Label option of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOption {
    /// None: its entries have no labels.
    Absent,
    /// Labels that the daemon selects by; help of the option.
    OfQuery(&'static str),
    /// Labels of the entry, or of its volume; help of the option.
    OfVolume(&'static str),
}

/// Entry of a list.
pub trait Listed: Sized + 'static {
    /// Help of `--name`.
    const NAME_HELP: &'static str;
    /// Short form of `--name`.
    const NAME_SHORT: Option<char> = None;
    /// Label option.
    const LABEL: LabelOption;
    /// Orders, the default first; none for short lists.
    const SORTS: &'static [Sort];

    /// Returns true if the name matches.
    fn is_named(&self, pattern: &NamePattern) -> bool;

    /// Returns the time of `--since` and `--until`; `None` if the list has no such options.
    fn at(&self) -> Option<Timestamp>;

    /// Returns true if it is of one of the volumes with the labels, or has them.
    fn is_labelled(&self, _label: &LabelSelector, _volumes: &BTreeSet<VolumeId>) -> bool {
        true
    }

    /// Compares two entries. Equal ones stay in the order of the daemon.
    fn compare(&self, _other: &Self, _sort: Sort) -> Ordering {
        Ordering::Equal
    }
}

/// Filters and order of a list of `T`.
#[derive(Clone, Debug)]
pub struct ListFilter<T> {
    /// Pattern of the name.
    pub name: Option<NamePattern>,
    /// Required labels.
    pub label: Option<LabelSelector>,
    /// Limits of the time.
    time: TimeFilter,
    /// Order; `None` for that of the daemon.
    sort: Option<Sort>,
    entries: PhantomData<fn() -> T>,
}

impl<T: Listed> ListFilter<T> {
    /// Returns true with a filter that the daemon does not know.
    pub fn is_filtered(&self) -> bool {
        let is_labelled = self.label.is_some() && matches!(T::LABEL, LabelOption::OfVolume(_));
        self.name.is_some() || is_labelled || !self.time.is_empty()
    }

    /// Keeps the wanted entries, the first `max` of them, in the requested order.
    ///
    /// # Errors
    /// The volumes with the labels cannot be listed.
    pub async fn apply(
        &self,
        context: &Context<'_>,
        items: &mut Vec<T>,
        max: Option<u32>,
    ) -> Result<(), Failure> {
        if let (Some(label), LabelOption::OfVolume(_)) = (&self.label, T::LABEL) {
            let query = ListVolumes { label: Some(label.clone()), ..ListVolumes::default() };
            let volumes = context.client.call(operations::LIST_VOLUMES, &query).await?.items;
            let volumes = volumes.into_iter().filter(|one| one.labels.matches(label));
            let volumes: BTreeSet<VolumeId> = volumes.map(|one| one.volume_id).collect();
            items.retain(|one| one.is_labelled(label, &volumes));
        }
        items.retain(|one| self.includes(one));
        items.truncate(max.map_or(usize::MAX, |max| max as usize));
        self.order(items);
        Ok(())
    }

    /// Returns true if name and time of an entry are wanted.
    pub fn includes(&self, one: &T) -> bool {
        self.name.as_ref().is_none_or(|name| one.is_named(name))
            && one.at().is_none_or(|at| self.time.includes(at))
    }

    /// Orders the entries.
    pub fn order(&self, items: &mut [T]) {
        if let Some(sort) = self.sort {
            items.sort_by(|a, b| a.compare(b, sort));
        }
    }
}

impl<T: Listed> Args for ListFilter<T> {
    fn augment_args(mut command: Command) -> Command {
        let name = Arg::new("name").short(T::NAME_SHORT).long("name").value_name("PATTERN");
        command = command.arg(name.help(T::NAME_HELP).value_parser(value_parser!(NamePattern)));
        if let LabelOption::OfQuery(help) | LabelOption::OfVolume(help) = T::LABEL {
            let label = Arg::new("label").short('l').long("label").value_name("K=V,…");
            command = command.arg(label.help(help).value_parser(value_parser!(LabelSelector)));
        }
        let Some(default) = T::SORTS.first() else { return command };
        let words = T::SORTS.iter().map(|sort| {
            let (word, help) = sort.texts();
            PossibleValue::new(word).help(help)
        });
        let parser = PossibleValuesParser::new(words)
            .map(|word| T::SORTS.iter().copied().find(|sort| sort.texts().0 == word));
        let sort = Arg::new("sort").long("sort").value_name("SORT").help("Order of the list");
        TimeFilter::augment_args(command).arg(sort.value_parser(parser).default_value(default.texts().0))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Listed> FromArgMatches for ListFilter<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let has_order = !T::SORTS.is_empty();
        let label = match T::LABEL {
            LabelOption::Absent => None,
            _ => matches.get_one("label").cloned(),
        };
        Ok(Self {
            name: matches.get_one("name").cloned(),
            label,
            time: if has_order { TimeFilter::from_arg_matches(matches)? } else { TimeFilter::default() },
            sort: if has_order { matches.get_one("sort").copied().flatten() } else { None },
            entries: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
