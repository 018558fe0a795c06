//! Objects of one call that make the same volume.

use super::{clones::clone_plans, resources::ResourceSet, restore_plans::foreseen_plans};
use crate::{
    failure::Failure,
    objects::{Body, Object, volumes::ReplacePolicy},
};
use blockd_api::VolumeName;

/// Refuses two restores or clones of a call with the same volume: the second one would replace the content of
/// the first or fail, at each `apply`. Restores of all volumes of a backup keep existing ones by default.
///
/// # Errors
/// Two objects have the same volume.
pub fn refuse_overlaps(objects: &[Object], resources: &ResourceSet) -> Result<(), Failure> {
    let mut made: Vec<(VolumeName, &Object)> = Vec::new();
    for object in objects {
        let volumes = volumes_of(object, resources);
        let is_shared = |(volume, other): &&(VolumeName, &Object)| {
            volumes.contains(volume) && !(keeps_volumes(object) && keeps_volumes(other))
        };
        if let Some((volume, other)) = made.iter().find(is_shared) {
            let [here, there] = [&object.document, &other.document];
            let message = format!(
                "{}: line {}: {object} and {other}, in {}, line {}, both make volume {volume}",
                here.source.file, here.line, there.source.file, there.line
            );
            return Err(Failure::usage(message));
        }
        made.extend(volumes.into_iter().map(|volume| (volume, object)));
    }
    Ok(())
}

fn keeps_volumes(object: &Object) -> bool {
    match &object.body {
        Body::Restore(restore) => restore.is_of_all() && restore.replace_policy == ReplacePolicy::Retain,
        _ => false,
    }
}

/// Returns the volumes of a restore or clone, as far as they are known before the first change.
fn volumes_of(object: &Object, resources: &ResourceSet) -> Vec<VolumeName> {
    match &object.body {
        Body::Restore(restore) => {
            let planned = foreseen_plans(object, restore, resources).into_iter().map(|one| one.volume);
            planned.chain(restore.destination_volume.clone()).collect()
        }
        Body::Clone(clone) => {
            let planned = clone_plans(object, clone, resources).unwrap_or_default().into_iter();
            planned.map(|one| one.name).chain(clone.destination_volume.clone()).collect()
        }
        _ => Vec::new(),
    }
}
