//! Volumes that cannot be opened, as far as they can be read: which ranges, and as exports.
//!
//! `salvage:VOLUME` is what a damaged volume was last, `salvage:VOLUME@SNAPSHOT` one of its snapshots; read-only, for those
//! who may have the volume, and only as long as it is not open. They are not listed. What cannot be proven is an error.

mod kept;

use crate::{
    access::Access,
    core::Core,
    db::{DbError, SnapshotRow, SnapshotState},
    error::{ServiceError, blocking},
    exports::{LATEST, allocation_extent, device_error, progress, split_name},
    registry::{Attachment, VolumeEntry},
};
use blockd_api::{
    ApiError, ErrorCode, SnapshotName, VolumeRef,
    volumes::{SalvageExtent, SalvageVolume, VolumeSalvage},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent, SnapshotId};
use blockd_nbd::{
    BlockDevice, Client, DeviceError, DeviceErrorKind, ExportError, ExportInfo, Progress, StatusExtent,
    constants::BASE_ALLOCATION,
};
use blockd_volume::{OpenOptions, Salvage, SalvageView, VolumeError, VolumeErrorKind};
use kept::{Found, Kept};
use std::{
    sync::{Arc, Weak},
    time::Instant,
};

/// What the names of these exports begin with; no volume's name does.
const PREFIX: &str = "salvage:";
/// The most extents in one reply: some megabytes of JSON.
const EXTENTS_AT_ONCE: usize = 1 << 15;

/// What is left of the volumes that somebody asked for.
#[derive(Debug)]
pub(crate) struct Salvages {
    /// How the volumes could not be opened.
    options: OpenOptions,
    kept: Kept,
}

impl Salvages {
    pub(crate) fn new(options: OpenOptions) -> Self {
        Self { options, kept: Kept::default() }
    }
}

impl Core {
    /// What can be read of a volume that cannot be opened.
    ///
    /// # Errors
    /// It can be opened, nothing of it can be proven, or there is no such snapshot.
    pub async fn salvage_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        query: &SalvageVolume,
    ) -> Result<VolumeSalvage, ServiceError> {
        let entry = self.registry.find(wanted)?;
        entry.check_failed()?;
        let snapshot = match &query.snapshot {
            Some(snapshot) => Some(self.snapshot_of(&entry, snapshot).await?),
            None => None,
        };
        let start = BlockIndex(query.offset_bytes.unwrap_or(0) / BLOCK_SIZE_BYTES);
        let core = Arc::clone(self);
        blocking(move || {
            let salvage = core.salvage(&entry)?;
            let (id, name) = snapshot.map(|row| (row.id, row.name)).unzip();
            let view = view(&salvage, id)?;
            Ok::<_, ServiceError>(core.report(&entry, &salvage, &view, name, start))
        })
        .await
    }

    fn report(
        &self,
        entry: &VolumeEntry,
        salvage: &Salvage,
        view: &SalvageView,
        snapshot: Option<SnapshotName>,
        start: BlockIndex,
    ) -> VolumeSalvage {
        let export = match &snapshot {
            Some(name) => format!("{PREFIX}{}@{name}", entry.name),
            None => format!("{PREFIX}{}", entry.name),
        };
        let mut extents = extents(view, start);
        let next_offset_bytes = extents.get(EXTENTS_AT_ONCE).map(|extent| extent.offset_bytes);
        extents.truncate(EXTENTS_AT_ONCE);
        VolumeSalvage {
            volume: entry.name.clone(),
            snapshot,
            uri: blockd_api::nbd_unix_uri(&export, &self.nbd_socket()),
            export,
            size_bytes: view.size_bytes(),
            data_bytes: view.data_bytes(),
            unreadable_bytes: view.unproven_bytes(),
            findings: salvage.findings(),
            extents,
            next_offset_bytes,
        }
    }

    /// What is left of a volume that is not open. Blocks.
    fn salvage(&self, entry: &VolumeEntry) -> Found {
        let dir = self.volume_dir(entry.id);
        self.salvages.kept.get(entry.id, &dir, Instant::now(), || match self.find_salvage(entry) {
            Ok(salvage) => (Ok(Arc::new(salvage)), true),
            Err(error) => {
                // A disk or a system that fails may be better the next time, and that is soon found out.
                (Err(hopeless(entry, &error)), error.kind() == VolumeErrorKind::Damaged)
            }
        })
    }

    fn find_salvage(&self, entry: &VolumeEntry) -> Result<Salvage, VolumeError> {
        let path = self.volume_dir(entry.id);
        let salvage = Salvage::open(&path, &self.salvages.options)?;
        if salvage.id() != entry.id || salvage.size_bytes() < entry.size_bytes() {
            let (id, size_bytes) = (salvage.id(), salvage.size_bytes());
            let what = format!("it is volume {id} of {size_bytes} bytes, not the one that belongs here");
            return Err(VolumeError::Damaged { path, what });
        }
        Ok(salvage)
    }
}

/// Nothing can be proven: says what would be right.
fn hopeless(entry: &VolumeEntry, error: &VolumeError) -> ApiError {
    let name = &entry.name;
    let message = format!("nothing of volume {name} can be read, because nothing can be proven: {error}");
    let hint = format!(
        "restore it from the cloud into a new volume: `blockctl cloudsnap list --src {name}`, then `blockctl cloudsnap restore --snap ID --volume NEW`"
    );
    ApiError::new(ErrorCode::VolumeFailed, message).with_hint(hint)
}

fn view(salvage: &Salvage, snapshot: Option<SnapshotId>) -> Result<SalvageView, VolumeError> {
    match snapshot {
        Some(id) => salvage.snapshot(id),
        None => Ok(salvage.latest()),
    }
}

/// Runs that can be read and runs that cannot, from a block on: one more than fit into a reply, if there are so many.
fn extents(view: &SalvageView, start: BlockIndex) -> Vec<SalvageExtent> {
    let end = Extent::whole(view.size_bytes()).end();
    let extent = |run: Extent, why: Option<&str>| SalvageExtent {
        offset_bytes: run.offset_bytes(),
        length_bytes: run.len_bytes(),
        readable: why.is_none(),
        why: why.map(str::to_owned),
    };
    let (mut found, mut at) = (Vec::new(), start.min(end));
    let mut lost = view.unproven_in(Extent::between(at, end));
    while at < end && found.len() <= EXTENTS_AT_ONCE {
        let next = lost.next();
        let until = next.map_or(end, |run| run.extent.start);
        if at < until {
            found.push(extent(Extent::between(at, until), None));
        }
        if let Some(run) = next {
            found.push(extent(run.extent, Some(run.why)));
        }
        at = next.map_or(end, |run| run.extent.end());
    }
    found
}

/// Damaged volumes as exports.
#[derive(Clone, Debug)]
pub(crate) struct SalvageExports {
    core: Weak<Core>,
}

impl SalvageExports {
    /// Those of this daemon.
    pub fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::downgrade(core) }
    }

    /// Whether a name is one of these exports'.
    pub fn has_name(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Opens one. Blocks.
    pub fn open(
        &self,
        name: &str,
        access: &Access,
        client: &Client,
    ) -> Result<Arc<dyn BlockDevice>, ExportError> {
        Ok(Arc::new(self.find(name, access, client)?))
    }

    /// What is known of one that was opened before: nothing is found out for it. Blocks.
    pub fn describe(&self, name: &str, access: &Access, client: &Client) -> Option<ExportInfo> {
        let core = self.core.upgrade()?;
        let (volume, snapshot) = split_name(name.strip_prefix(PREFIX)?);
        let entry = core.registry.by_name(volume)?;
        access.check(entry.name.as_str(), client).ok()?;
        entry.check_failed().ok()?;
        let salvage = core.salvages.kept.last(entry.id)?;
        let snapshot = snapshot.map(|wanted| find_snapshot(&core, &entry, wanted)).transpose().ok()?;
        let size_bytes = view(&salvage, snapshot).ok()?.size_bytes();
        Some(ExportInfo {
            name: name.to_owned(),
            description: format!("what can be read of volume {}", entry.name),
            size_bytes,
            read_only: true,
        })
    }

    fn find(&self, name: &str, access: &Access, client: &Client) -> Result<SalvageDevice, ExportError> {
        let unavailable = |reason: String| ExportError::Unavailable { reason };
        let core = self.core.upgrade().ok_or_else(|| unavailable("the daemon is stopping".into()))?;
        let (volume, snapshot) = split_name(name.strip_prefix(PREFIX).ok_or(ExportError::Unknown)?);
        let entry = core.registry.by_name(volume).ok_or(ExportError::Unknown)?;
        access.check(entry.name.as_str(), client)?;
        let attachment = entry
            .attach_failed_up_to(access.max_connections(client))
            .map_err(|error| unavailable(error.message))?;
        let snapshot = match snapshot {
            Some(wanted) => Some(find_snapshot(&core, &entry, wanted)?),
            None => None,
        };
        let salvage = core.salvage(&entry).map_err(|error| unavailable(error.message))?;
        // One that the volume's files do not know any more.
        let view = view(&salvage, snapshot).map_err(|_| ExportError::Unknown)?;
        Ok(SalvageDevice { view, _salvage: salvage, _attachment: attachment })
    }
}

fn find_snapshot(core: &Core, entry: &VolumeEntry, wanted: &str) -> Result<SnapshotId, ExportError> {
    let rows = core.db.transaction(|tx| SnapshotRow::all(tx, Some(entry.id)));
    let unavailable = |error: DbError| ExportError::Unavailable { reason: error.to_string() };
    let is_shown = |row: &SnapshotRow| !row.internal && row.state == SnapshotState::Ready;
    let mut rows: Vec<_> = rows.map_err(unavailable)?.into_iter().filter(is_shown).collect();
    rows.sort_unstable_by_key(|row| row.epoch);
    let named = rows.iter().find(|row| row.name.as_str() == wanted || row.id.to_string() == wanted);
    let found = named.or_else(|| rows.last().filter(|_| wanted == LATEST));
    found.map(|row| row.id).ok_or(ExportError::Unknown)
}

/// One connection's view of a damaged volume, which is not deleted meanwhile.
struct SalvageDevice {
    view: SalvageView,
    /// So that the next connection need not find it out again.
    _salvage: Arc<Salvage>,
    _attachment: Attachment,
}

impl BlockDevice for SalvageDevice {
    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let content = self.view.try_read(offset_bytes, buf).map_err(|error| device_error(&error))?;
        Ok(content.map_or(Progress::WouldBlock, progress))
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.view.read(offset_bytes, buf).map(progress).map_err(|error| device_error(&error))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        if context != BASE_ALLOCATION {
            let message = format!("there is no metadata context {context}");
            return Err(DeviceError::new(DeviceErrorKind::InvalidInput, message));
        }
        let runs = self.view.allocation(offset_bytes, len_bytes, max_extents);
        extents.extend(runs.map_err(|error| device_error(&error))?.into_iter().map(allocation_extent));
        Ok(())
    }
}
