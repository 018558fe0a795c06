//! Selection of volumes by schedules.

use crate::volumes::registry::Tags;
use blockd_api::{Labels, VolumeName, schedules::Selector};
use blockd_extent::VolumeId;

/// Volume that schedules may select.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub(crate) id: VolumeId,
    pub(crate) name: VolumeName,
    pub(crate) tags: Tags,
}

/// Returns true if the selector matches the volume.
pub fn is_selected(selector: &Selector, volume: &Candidate) -> bool {
    let named = match &selector.volume {
        Some(blockd_api::VolumeRef::Id(id)) => *id == volume.id,
        Some(blockd_api::VolumeRef::Name(name)) => *name == volume.name,
        None => false,
    };
    named
        || (selector.group.is_some() && selector.group == volume.tags.group)
        || selects_labels(selector, &volume.tags.labels)
}

/// Returns true if the selector matches a volume by its labels. One of all volumes leaves out excluded ones.
pub fn selects_labels(selector: &Selector, labels: &Labels) -> bool {
    (selector.all && !labels.is_excluded())
        || selector.label.as_ref().is_some_and(|label| labels.matches(label))
}

/// Returns true if the selector matches one of these volumes.
pub fn selects_any(selector: &Selector, volumes: &[Candidate]) -> bool {
    volumes.iter().any(|volume| is_selected(selector, volume))
}

/// Returns true if a schedule protects none of these volumes: one of all volumes waits for the first.
pub fn protects_nothing(selector: &Selector, volumes: &[Candidate]) -> bool {
    !selector.all && !selects_any(selector, volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_of_all_volumes_leaves_out_excluded_ones() {
        let labels = "app=x,backup=none".parse::<blockd_api::LabelSelector>().unwrap().labels().clone();
        let tags = Tags { labels, group: Some("shop".parse().unwrap()) };
        let volume = Candidate { id: VolumeId::from_u64(1), name: "v".parse().unwrap(), tags };
        let none = Selector::default;
        assert!(!is_selected(&Selector { all: true, ..none() }, &volume));
        for selector in [
            Selector { volume: Some(blockd_api::VolumeRef::Id(volume.id)), ..none() },
            Selector { group: Some("shop".parse().unwrap()), ..none() },
            Selector { label: Some("backup=none".parse().unwrap()), ..none() },
        ] {
            assert!(is_selected(&selector, &volume), "{selector:?}");
        }
        let labels = "backup=weekly".parse::<blockd_api::LabelSelector>().unwrap().labels().clone();
        assert!(selects_labels(&Selector { all: true, ..none() }, &labels));
    }
}
