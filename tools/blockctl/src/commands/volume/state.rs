//! States of volumes, as lists and `volume inspect` show them.

use crate::table::counted;
use blockd_api::{
    ByteSize,
    lazy::{Hydration, InPlaceProgress},
    tasks::ways_to_end,
    volumes::{Volume, VolumeState},
};

/// Formats the state of a volume: attached as a device of this host, or used by other NBD clients.
pub fn status(volume: &Volume) -> String {
    let hydration = volume.hydration.as_ref().filter(|_| volume.state == VolumeState::Up);
    let hydration = hydration.map(|hydration| format!(" - {}", percent(hydration)));
    let is_damaged = volume.state == VolumeState::Up && volume.damaged_bytes > 0;
    let damaged = if is_damaged { " - damaged" } else { "" };
    use_of(volume) + &hydration.unwrap_or_default() + damaged
}

fn use_of(volume: &Volume) -> String {
    if let (VolumeState::Up, Some(in_place_restore)) = (volume.state, &volume.in_place_restore) {
        return format!("up - {}", in_place_line(in_place_restore));
    }
    match (volume.state, &volume.state_reason) {
        (VolumeState::Up, _) if volume.rollback.is_some() => "up - rolling back".to_owned(),
        (VolumeState::Up, _) if volume.attachment.as_ref().is_some_and(|attachment| attachment.connected) => {
            "up - attached".to_owned()
        }
        (VolumeState::Up, _) if volume.connections > 0 => {
            format!("up - {}", counted(volume.connections, "connection"))
        }
        (VolumeState::Up, _) => "up - detached".to_owned(),
        (state, Some(reason)) => format!("{state} - {reason}"),
        (state, None) => state.to_string(),
    }
}

/// Formats the progress of an in-place restore.
fn in_place_line(in_place_restore: &InPlaceProgress) -> String {
    let InPlaceProgress { task_id: task, done_bytes, total_bytes, is_partial, .. } = in_place_restore;
    match is_partial {
        true => format!("restored in part: {}", ways_to_end(*task)),
        false if *total_bytes == 0 => "restoring".to_owned(),
        false => format!("restoring, {}%", u128::from(*done_bytes) * 100 / u128::from(*total_bytes)),
    }
}

/// Formats the hydrated share of a volume.
fn percent(hydration: &Hydration) -> String {
    let percent = hydration.done_bytes * 100 / hydration.total_bytes.max(1);
    match hydration.in_background {
        true => format!("hydrating, {percent}%"),
        false => format!("lazy, {percent}%"),
    }
}

/// Formats the hydration state in one line.
pub fn hydration_line(hydration: Option<&Hydration>) -> String {
    let Some(hydration) = hydration else { return "-".to_owned() };
    let size = |bytes| ByteSize::from_bytes(bytes).to_string();
    format!(
        "{} of {}, {} of {}, {} on loss of the store, {} waiting",
        if hydration.in_background { "hydrating" } else { "lazy" },
        hydration.cloud_snapshot_id,
        size(hydration.done_bytes),
        size(hydration.total_bytes),
        hydration.on_store_loss,
        hydration.waiting_requests
    )
}
