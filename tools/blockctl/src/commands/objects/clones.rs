//! Clones of volumes from one point in time.

use super::resources::ResourceSet;
use crate::{
    failure::Failure,
    objects::{
        NAMESPACE,
        volumes::{CLONED_FROM, VolumeClone, snapshot_of},
    },
    output::Context,
};
use blockd_api::{
    Client, Labels, SnapshotName, VolumeName, VolumeRef, operations,
    quiesce::HookOptions,
    snapshots::{CreateGroupSnapshot, CreateSnapshot},
    volumes::CloneVolume,
};
use std::collections::BTreeMap;

/// Clones a named snapshot of a volume, or the current content of volumes without a clone.
pub async fn clone_volumes(
    context: &Context<'_>,
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
        let Err(error) = clone_one(context, clone, source, name, &snapshot).await else { continue };
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
    clone: &VolumeClone,
    source: &VolumeName,
    name: &VolumeName,
    snapshot: &SnapshotName,
) -> Result<(), Failure> {
    let snapshot = snapshot_of(source, snapshot.clone());
    let mut labels = BTreeMap::from([(CLONED_FROM.to_owned(), snapshot.to_string())]);
    labels.extend(clone.destination_namespace.clone().map(|namespace| (NAMESPACE.to_owned(), namespace)));
    let labels = Labels::try_from(labels).map_err(|error| Failure::usage(error.to_string()))?;
    let request = CloneVolume { name: name.clone(), snapshot, labels };
    context.client.call_at(operations::CLONE_VOLUME, &VolumeRef::Name(source.clone()), &request).await?;
    Ok(())
}
