//! Selection of volumes by schedules.

use crate::volumes::registry::Tags;
use blockd_api::{VolumeName, schedules::Selector};
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
        || selector.all
        || (selector.group.is_some() && selector.group == volume.tags.group)
        || selector.label.as_ref().is_some_and(|label| volume.tags.labels.matches(label))
}

/// Returns true if the selector matches one of these volumes.
pub fn selects_any(selector: &Selector, volumes: &[Candidate]) -> bool {
    volumes.iter().any(|volume| is_selected(selector, volume))
}

/// Returns true if a schedule protects none of these volumes: one of all volumes waits for the first.
pub fn protects_nothing(selector: &Selector, volumes: &[Candidate]) -> bool {
    !selector.all && !selects_any(selector, volumes)
}
