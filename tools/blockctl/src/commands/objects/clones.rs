//! Clones of volumes from one point in time.

use super::resources::ResourceSet;
use crate::{
    failure::Failure,
    objects::{
        NAMESPACE, Object,
        volumes::{VolumeClone, snapshot_of, with_labels},
    },
    output::Context,
};
use blockd_api::{
    CLONED_BY, CLONED_FROM, Client, Labels, SnapshotName, VolumeName, VolumeRef, operations,
    quiesce::HookOptions,
    snapshots::{CreateGroupSnapshot, CreateSnapshot},
    volumes::CloneVolume,
};

/// Clones a named snapshot of a volume, or the current content of volumes without a clone.
pub async fn clone_volumes(
    context: &Context<'_>,
    object: &Object,
    clone: &VolumeClone,
    resources: &ResourceSet,
) -> Result<(), Failure> {
    let client = &context.client;
    let unnamed = || Failure::usage("a clone cannot be named: its name is too long");
    let snapshot = clone.snapshot_name().ok_or_else(unnamed)?;
    let mut pairs: Vec<(VolumeName, VolumeName)> = Vec::new();
    for source in resources.clone_sources(clone) {
        let name = clone.destination(&source).ok_or_else(unnamed)?;
        if resources.volume(&name).is_none() {
            pairs.push((source, name));
        }
    }
    if clone.snapshot.is_none() {
        let sources = pairs.iter().map(|(source, _)| source.clone()).collect();
        take_snapshots(client, sources, snapshot.clone(), HookOptions::default()).await?;
    }
    for (index, (source, name)) in pairs.iter().enumerate() {
        let Err(error) = clone_one(context, object, clone, [source, name], &snapshot).await else { continue };
        for (left, _) in pairs[index..].iter().filter(|_| clone.snapshot.is_none()) {
            let taken = snapshot_of(left, snapshot.clone());
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
) -> Result<(), Failure> {
    let snapshot = snapshot_of(source, snapshot.clone());
    let origin = [(CLONED_FROM, snapshot.to_string()), (CLONED_BY, object.name.to_string())];
    let mut labels = with_labels(&Labels::default(), origin);
    if let Some(namespace) = &clone.destination_namespace {
        labels = with_labels(&labels, [(NAMESPACE, namespace.clone())]);
    }
    let request = CloneVolume { name: name.clone(), snapshot, labels };
    context.client.call_at(operations::CLONE_VOLUME, &VolumeRef::Name(source.clone()), &request).await?;
    Ok(())
}
