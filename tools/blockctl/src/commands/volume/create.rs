//! `blockctl volume create`, also from an image.
//!
//! Schedules include a volume from its creation on, so that an incomplete copy of an image must not stay.

use super::{
    args::CreateArgs,
    image::Image,
    labels::{merged, refuse_second_policy, with_policy},
};
use crate::{
    failure::{Exit, Failure},
    nbd::{NbdClient, NbdUri},
    output::Context,
    signals::Signals,
};
use blockd_api::{
    ClientError, ErrorCode, VolumeRef, operations,
    volumes::{CreateVolume, DeleteVolume, Volume},
};
use rustix::net::{Shutdown, shutdown};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::{signal::unix::SignalKind, task::spawn_blocking, time::sleep};

/// Timeout of the daemon for the end of a connection.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn run(context: &Context<'_>, args: CreateArgs) -> Exit {
    let image = match &args.from_image {
        Some(from) if context.client.endpoint().socket().is_some() => Some((from, Image::open(from)?)),
        Some(_) => return Err(Failure::usage("--from-image copies on the host of the daemon: run it there")),
        None => None,
    };
    let size = args.size.or_else(|| image.as_ref()?.1.size());
    let size = size.ok_or_else(|| Failure::usage("the size of stdin is unknown: give --size"))?;
    let labels = merged(&args.label)?;
    refuse_second_policy(labels.as_map().keys().map(String::as_str), args.anomaly_policy)?;
    let labels = with_policy(labels, args.anomaly_policy)?;
    let request = CreateVolume { name: args.name, size_bytes: size.as_bytes(), labels, group: args.group };
    let Some((from, image)) = image else {
        let volume = context.client.call(operations::CREATE_VOLUME, &request).await?;
        return tell(context, &volume);
    };
    let failed = |source| Failure::image(from, source);
    // Before the volume exists: from then on, a signal deletes it.
    let ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = Signals::listen(&ends).map_err(failed)?;
    let volume = context.client.call(operations::CREATE_VOLUME, &request).await?;
    if let Err(source) = copy(&volume, image, &mut signals).await {
        delete_incomplete(context, &volume).await;
        return Err(failed(source));
    }
    tell(context, &volume)
}

fn tell(context: &Context<'_>, volume: &Volume) -> Exit {
    context.output.tell(volume, || format!("Volume successfully created: {}", volume.volume_id))
}

/// Copies an image into a volume of this host.
///
/// # Errors
/// The copy fails, or a signal ends it (`Interrupted`).
async fn copy(volume: &Volume, image: Image, signals: &mut Signals) -> io::Result<()> {
    let uri = volume.uri.parse::<NbdUri>().map_err(io::Error::other)?;
    let client = NbdClient::connect(&uri)?;
    let connection = client.connection()?;
    let copying = spawn_blocking(move || image.copy_to(client));
    tokio::select! {
        biased;
        () = signals.received() => {
            // A read of stdin may never return: only the end of the connection releases the volume.
            shutdown(&connection, Shutdown::Both)?;
            Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted by a signal"))
        }
        copied = copying => copied.map_err(io::Error::other)?,
    }
}

/// Deletes a volume with an incomplete copy. The daemon first has to see the end of the connection.
async fn delete_incomplete(context: &Context<'_>, volume: &Volume) {
    let (id, request) = (VolumeRef::Id(volume.volume_id), DeleteVolume::default());
    let until = Instant::now() + RELEASE_LIMIT;
    let error = loop {
        match context.client.call_at(operations::DELETE_VOLUME, &id, &request).await {
            Ok(_) => return,
            Err(ClientError::Api(error))
                if error.code == ErrorCode::VolumeInUse && Instant::now() < until =>
            {
                sleep(RELEASE_PAUSE).await;
            }
            Err(error) => break error,
        }
    };
    context.output.note(format!("warning: the incomplete volume {} is left: {error}", volume.name));
}
