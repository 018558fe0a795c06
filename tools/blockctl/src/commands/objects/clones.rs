//! Clones of volumes from one point in time.

use super::{
    plan::Plan,
    references::{VOLUME_LIST, no_label},
    resources::ResourceSet,
    status::FieldChange,
};
use crate::{
    commands::cloudsnap::restore::note_on_schedules,
    failure::Failure,
    objects::{
        NAMESPACE, Object,
        volumes::{VolumeClone, snapshot_of, with_labels},
    },
    output::Context,
};
use blockd_api::{
    ApiError, CLONED_BEFORE, CLONED_BY, CLONED_FROM, Client, ErrorCode, ORIGIN_LABELS, SnapshotName,
    VolumeName, VolumeRef, first_names, operations,
    quiesce::HookOptions,
    snapshots::{CreateGroupSnapshot, CreateSnapshot, Snapshot},
    volumes::{CloneVolume, UpdateVolume, Volume},
};
use std::collections::BTreeSet;

/// Clone of a volume.
pub struct ClonePlan<'a> {
    source: VolumeName,
    pub name: VolumeName,
    /// Existing clone. A volume whose label names the object is one under any name.
    pub volume: Option<&'a Volume>,
    /// Existing snapshot to clone; `None` for a new one.
    snapshot: Option<SnapshotName>,
}

impl<'a> ClonePlan<'a> {
    /// Returns the existing volume if the object was deleted: its label does not name the object.
    fn forgotten(&self) -> Option<&'a Volume> {
        self.volume.filter(|volume| !volume.labels.as_map().contains_key(CLONED_BY))
    }
}

/// Returns true for a volume of a deleted object of this name.
fn is_forgotten(object: &Object, volume: &Volume) -> bool {
    let labels = volume.labels.as_map();
    !labels.contains_key(CLONED_BY) && labels.get(CLONED_BEFORE).is_some_and(|by| *by == object.name.as_str())
}

/// Returns the plan of a clone.
pub fn plan_clone(object: &Object, clone: &VolumeClone, resources: &ResourceSet) -> Plan {
    match clone_plans(object, clone, resources) {
        Ok(plans) if plans.iter().any(|one| one.volume.is_none()) => Plan::Create,
        Ok(plans) if plans.iter().any(|one| one.forgotten().is_some()) => Plan::Update(vec![FieldChange {
            path: format!("metadata.labels.{CLONED_BY}"),
            is: None,
            should: Some(object.name.as_str().into()),
        }]),
        Ok(_) => Plan::Unchanged,
        Err(error) => Plan::Refused(Vec::new(), error),
    }
}

/// Returns the clones of an object.
///
/// # Errors
/// There are no volumes to clone, a volume of the name is not a clone, or a missing one cannot have the point
/// in time of the others.
pub fn clone_plans<'a>(
    object: &'a Object,
    clone: &VolumeClone,
    resources: &'a ResourceSet,
) -> Result<Vec<ClonePlan<'a>>, ApiError> {
    let mut made: Vec<&Volume> = resources.cloned_by(object.name.as_str()).collect();
    let sources = clone_sources(object, clone, resources);
    // Those of the deleted object have its point in time, too.
    made.extend(sources.iter().filter_map(|source| {
        let volume = resources.volume(&clone.destination(source)?)?;
        (is_forgotten(object, volume) && clone.is_of(source, origin(volume)?)).then_some(volume)
    }));
    if sources.is_empty() && made.is_empty() {
        let namespace = clone.source_namespace.as_deref().unwrap_or_default();
        let label = format!("{NAMESPACE}={namespace}");
        let error = ApiError::new(ErrorCode::VolumeNotFound, no_label(&label, &label));
        return Err(object.locate(error.with_hint(VOLUME_LIST)));
    }
    let planned = |source: VolumeName| {
        let is_exact = |volume: &&Volume| origin(volume).is_some_and(|origin| clone.is_of(&source, origin));
        let is_renamed = |volume: &&Volume| {
            origin(volume).is_some_and(|origin| is_of_renamed(clone, &source, origin, resources))
        };
        let name = clone.destination(&source).ok_or_else(unnamed)?;
        let find = |is_clone: &dyn Fn(&&Volume) -> bool| made.iter().copied().find(is_clone);
        // Snapshots that were taken together have one name: they do not tell a renamed source from another.
        let volume = find(&is_exact).or_else(|| find(&is_renamed)).or_else(|| resources.volume(&name));
        let obstacle = volume.and_then(|volume| {
            let labels = volume.labels.as_map();
            match labels.get(CLONED_BY) {
                Some(by) if *by != object.name.as_str() => Some(format!("the clone of {}/{by}", object.kind)),
                None if origin(volume).is_some() && !is_forgotten(object, volume) => {
                    let by = labels.get(CLONED_BEFORE);
                    let deleted = by.map(|by| format!("the clone of a deleted {}/{by}", object.kind));
                    Some(deleted.unwrap_or_else(|| "a clone that no object made".to_owned()))
                }
                _ if is_exact(&volume) || is_renamed(&volume) => None,
                _ => {
                    let snapshot = clone.snapshot.as_ref().map(|snapshot| format!("@{snapshot}"));
                    Some(format!("not a clone of {source}{}", snapshot.unwrap_or_default()))
                }
            }
        });
        if let Some(obstacle) = obstacle {
            let message = format!(
                "{object}: volume {name} exists and is {obstacle}: delete it first, or name another one in destinationVolume"
            );
            return Err(ApiError::new(ErrorCode::VolumeExists, message));
        }
        let snapshot = match volume {
            None => snapshot_to_clone(object, clone, &source, &made, resources)?,
            Some(_) => None,
        };
        Ok(ClonePlan { source, name, volume, snapshot })
    };
    sources.into_iter().map(planned).collect()
}

/// Returns the existing snapshot of a volume to clone: the named one, or in a namespace that of the other
/// clones; `None` for a new one.
///
/// # Errors
/// The volume has no snapshot of the point in time of the other clones.
fn snapshot_to_clone(
    object: &Object,
    clone: &VolumeClone,
    source: &VolumeName,
    made: &[&Volume],
    resources: &ResourceSet,
) -> Result<Option<SnapshotName>, ApiError> {
    if clone.source_namespace.is_none() || made.is_empty() {
        return Ok(clone.snapshot.clone());
    }
    let names: BTreeSet<&str> = made.iter().filter_map(|one| Some(origin(one)?.split_once('@')?.1)).collect();
    let id = resources.volume(source).map(|volume| volume.volume_id);
    let is_it = |one: &&Snapshot| Some(one.volume_id) == id && names.contains(one.name.as_str());
    if let Some(snapshot) = resources.snapshots.iter().find(is_it) {
        return Ok(Some(snapshot.name.clone()));
    }
    let others = first_names(made.iter().map(|volume| &volume.name));
    let message = format!("{object}: volume {source} has no snapshot of the point in time of {others}");
    let hint = "delete these clones to clone all volumes again, or give a new object another name and destinationNamespace";
    Err(ApiError::new(ErrorCode::VolumeExists, message).with_hint(hint))
}

/// Returns the volume and snapshot that a volume was cloned from.
fn origin(volume: &Volume) -> Option<&String> {
    volume.labels.as_map().get(CLONED_FROM)
}

/// Returns true if a source had another name when it was cloned: that of no volume now, and it has the
/// snapshot.
fn is_of_renamed(clone: &VolumeClone, source: &VolumeName, origin: &str, resources: &ResourceSet) -> bool {
    let (Some((was, snapshot)), Some(volume)) = (origin.split_once('@'), resources.volume(source)) else {
        return false;
    };
    was.parse().is_ok_and(|was| resources.volume(&was).is_none() && clone.is_of(&was, origin))
        && resources
            .snapshots
            .iter()
            .any(|one| one.volume_id == volume.volume_id && one.name.as_str() == snapshot)
}

/// Returns the volumes of a clone. Its own clones are none, also with the label of the namespace.
fn clone_sources(object: &Object, clone: &VolumeClone, resources: &ResourceSet) -> Vec<VolumeName> {
    let Some(namespace) = &clone.source_namespace else { return clone.source.clone().into_iter().collect() };
    let is_meant = |volume: &&Volume| {
        let labels = volume.labels.as_map();
        labels.get(NAMESPACE) == Some(namespace)
            && labels.get(CLONED_BY).is_none_or(|by| *by != object.name.as_str())
    };
    resources.volumes.iter().filter(is_meant).map(|volume| volume.name.clone()).collect()
}

fn unnamed() -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, "a clone cannot be named: its name is too long")
}

/// Clones a named snapshot of a volume, the current content of volumes, or of those without a clone the
/// snapshots of the point in time of the others. Clones of the deleted object become its clones again.
pub async fn clone_volumes(
    context: &Context<'_>,
    object: &Object,
    clone: &VolumeClone,
    resources: &ResourceSet,
) -> Result<(), Failure> {
    let client = &context.client;
    let taken = clone.snapshot_name().ok_or_else(unnamed)?;
    let mut missing = clone_plans(object, clone, resources)?;
    for volume in missing.iter().filter_map(ClonePlan::forgotten) {
        let id = VolumeRef::Id(volume.volume_id);
        // They may have changed since the resources were loaded.
        let labels = client.call_at(operations::GET_VOLUME, &id, &()).await?.labels;
        let labels = labels.without(&[CLONED_BEFORE]);
        let labels = with_labels(&labels, [(CLONED_BY, object.name.to_string())]).map_err(ApiError::from)?;
        let request = UpdateVolume { labels: Some(labels), ..UpdateVolume::default() };
        client.call_at(operations::UPDATE_VOLUME, &id, &request).await?;
    }
    missing.retain(|one| one.volume.is_none());
    let without: Vec<_> =
        missing.iter().filter(|one| one.snapshot.is_none()).map(|one| one.source.clone()).collect();
    if !without.is_empty() {
        take_snapshots(client, without, taken.clone(), HookOptions::default()).await?;
    }
    for (index, one) in missing.iter().enumerate() {
        let snapshot = one.snapshot.as_ref().unwrap_or(&taken);
        let (names, parent) = ([&one.source, &one.name], resources.volume(&one.source));
        let error = match clone_one(context, object, clone, names, snapshot, parent).await {
            Ok(made) => {
                let note = note_on_schedules(&made.name, &resources.schedules_of(&made));
                note.filter(|_| !context.output.is_json())
                    .into_iter()
                    .for_each(|note| context.output.note(note));
                continue;
            }
            Err(error) => error,
        };
        for left in missing[index..].iter().filter(|left| left.snapshot.is_none()) {
            let taken = snapshot_of(&left.source, taken.clone());
            let deleted = client.call_at(operations::DELETE_SNAPSHOT, &taken, &Default::default()).await;
            if let Err(error) = deleted {
                let warning = format!("warning: snapshot {taken}, taken for the clone, is left: {error}");
                context.output.note(warning);
            }
        }
        return Err(error);
    }
    Ok(())
}

/// Takes snapshots of volumes at one point in time.
pub async fn take_snapshots(
    client: &Client,
    mut sources: Vec<VolumeName>,
    name: SnapshotName,
    hooks: HookOptions,
) -> Result<(), Failure> {
    let name = Some(name);
    if sources.len() == 1 {
        let volume = VolumeRef::Name(sources.remove(0));
        client.call_at(operations::CREATE_SNAPSHOT, &volume, &CreateSnapshot { name, hooks }).await?;
    } else {
        let volumes = sources.into_iter().map(VolumeRef::Name).collect();
        let request = CreateGroupSnapshot { volumes, name, hooks, ..CreateGroupSnapshot::default() };
        client.call(operations::CREATE_GROUP_SNAPSHOT, &request).await?;
    }
    Ok(())
}

async fn clone_one(
    context: &Context<'_>,
    object: &Object,
    clone: &VolumeClone,
    [source, name]: [&VolumeName; 2],
    snapshot: &SnapshotName,
    parent: Option<&Volume>,
) -> Result<Volume, Failure> {
    let snapshot = snapshot_of(source, snapshot.clone());
    let origin = [(CLONED_FROM, snapshot.to_string()), (CLONED_BY, object.name.to_string())];
    let namespace = clone.destination_namespace.iter().map(|namespace| (NAMESPACE, namespace.clone()));
    // Beside its source, a clone is no member of the namespace: it would be cloned and backed up with it.
    let own = parent.map(|parent| parent.labels.clone().without(&ORIGIN_LABELS).without(&[NAMESPACE]));
    let own = own.unwrap_or_default();
    let labels = with_labels(&own, origin.into_iter().chain(namespace)).map_err(ApiError::from)?;
    let request = CloneVolume { name: name.clone(), snapshot, labels };
    let source = VolumeRef::Name(source.clone());
    Ok(context.client.call_at(operations::CLONE_VOLUME, &source, &request).await?)
}
