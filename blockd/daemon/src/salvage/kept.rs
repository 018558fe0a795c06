//! What was found out of volumes that cannot be opened, for the next one who asks.
//!
//! It may take seconds of computing, and whoever may have such a volume can ask as often as they like: so it is found out
//! once for each state of the volume's files, by one at a time, and others of the same volume wait for that.

use blockd_api::ApiError;
use blockd_extent::VolumeId;
use blockd_volume::Salvage;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long it is kept while nobody reads the volume.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Of how many volumes; each may have its files open.
const MOST_KEPT: usize = 16;

/// What is left of a volume, or why nothing of it can be read.
pub(super) type Found = Result<Arc<Salvage>, ApiError>;

/// What is known of each volume that somebody asked for.
#[derive(Default)]
pub(super) struct Kept {
    slots: Mutex<HashMap<VolumeId, Slot>>,
}

#[derive(Clone)]
struct Slot {
    asked: Instant,
    finding: Arc<Mutex<Option<Finding>>>,
}

struct Finding {
    found: Found,
    files: Option<Files>,
}

/// Name, inode, length in bytes and time of change of all files in a folder, by name.
type Files = Vec<(OsString, u64, u64, (i64, i64))>;

fn files(dir: &Path) -> io::Result<Files> {
    let file = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let meta = entry.metadata()?;
        Ok((entry.file_name(), meta.ino(), meta.len(), (meta.ctime(), meta.ctime_nsec())))
    };
    let mut all = fs::read_dir(dir)?.map(file).collect::<io::Result<Files>>()?;
    all.sort_unstable();
    Ok(all)
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Slot {
    /// Somebody finds it out, or reads the volume.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.finding) > 1
            || self.finding.try_lock().is_none_or(|finding| {
                let found = finding.as_ref().and_then(|finding| finding.found.as_ref().ok());
                found.is_some_and(|salvage| Arc::strong_count(salvage) > 1)
            })
    }
}

impl Kept {
    /// What is known of a volume in `dir`; `find` finds it out, and says whether it is to be kept. Blocks.
    pub(super) fn get(
        &self,
        volume: VolumeId,
        dir: &Path,
        now: Instant,
        find: impl FnOnce() -> (Found, bool),
    ) -> Found {
        let slot = self.slot(volume, now);
        let mut finding = slot.finding.lock();
        // Looked at before they are read: what changes meanwhile is noticed the next time.
        let files = files(dir).ok();
        if let Some(known) = finding.as_ref().filter(|known| files.is_some() && known.files == files) {
            return known.found.clone();
        }
        // Two of them would take twice the memory.
        *finding = None;
        let (found, is_kept) = find();
        if is_kept {
            *finding = Some(Finding { found: found.clone(), files });
        }
        found
    }

    /// What was found out last, if that is kept and nobody is finding it out anew.
    pub(super) fn last(&self, volume: VolumeId) -> Option<Arc<Salvage>> {
        let slot = self.slots.lock().get(&volume).cloned()?;
        let finding = slot.finding.try_lock()?;
        finding.as_ref()?.found.as_ref().ok().cloned()
    }

    fn slot(&self, volume: VolumeId, now: Instant) -> Slot {
        let mut slots = self.slots.lock();
        slots.retain(|_, slot| now.saturating_duration_since(slot.asked) < KEPT_FOR || slot.is_in_use());
        if slots.len() >= MOST_KEPT && !slots.contains_key(&volume) {
            let idle = slots.iter().filter(|(_, slot)| !slot.is_in_use());
            if let Some(oldest) = idle.min_by_key(|(_, slot)| slot.asked).map(|(volume, _)| *volume) {
                slots.remove(&oldest);
            }
        }
        let slot = slots.entry(volume).or_insert_with(|| Slot { asked: now, finding: Arc::default() });
        slot.asked = now;
        slot.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::ErrorCode;
    use blockd_volume::{OpenOptions, Volume};

    /// Asks for a volume, and tells whether it was found out anew.
    fn ask(kept: &Kept, volume: u64, dir: &Path, now: Instant, is_kept: bool) -> bool {
        let mut is_new = false;
        let refused = kept.get(VolumeId::from_u64(volume), dir, now, || {
            is_new = true;
            (Err(ApiError::new(ErrorCode::VolumeFailed, "nothing can be proven")), is_kept)
        });
        assert!(refused.is_err());
        is_new
    }

    #[test]
    fn it_is_found_out_once_for_each_state_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one").unwrap();
        let (kept, start) = (Kept::default(), Instant::now());
        assert!(ask(&kept, 1, dir.path(), start, true));
        assert!(!ask(&kept, 1, dir.path(), start, true));
        fs::write(&file, "three").unwrap();
        assert!(ask(&kept, 1, dir.path(), start, true));
        fs::write(dir.path().join("g"), "").unwrap();
        assert!(ask(&kept, 1, dir.path(), start, false), "a new file");
        assert!(ask(&kept, 1, dir.path(), start, true), "it was not to be kept");
        assert!(!ask(&kept, 1, dir.path(), start + KEPT_FOR / 2, true));
        assert!(!ask(&kept, 1, dir.path(), start + KEPT_FOR, true));
        assert!(ask(&kept, 1, dir.path(), start + KEPT_FOR * 2, true), "it is old");
        let gone = dir.path().join("gone");
        assert!(ask(&kept, 2, &gone, start, true) && ask(&kept, 2, &gone, start, true));
    }

    #[test]
    fn only_so_much_is_kept_and_what_is_read_stays() {
        let dir = tempfile::tempdir().unwrap();
        let volume_dir = dir.path().join("v");
        let id = VolumeId::from_u64(1);
        drop(Volume::create(&volume_dir, id, 1 << 20).unwrap());
        let (kept, start) = (Kept::default(), Instant::now());
        let open = || (Ok(Arc::new(Salvage::open(&volume_dir, &OpenOptions::default()).unwrap())), true);
        let read = kept.get(id, &volume_dir, start, open).unwrap();
        assert!(Arc::ptr_eq(&read, &kept.last(id).unwrap()));
        for other in 2..=3 * MOST_KEPT as u64 {
            assert!(ask(&kept, other, dir.path(), start + Duration::from_secs(other), true));
            assert!(kept.slots.lock().len() <= MOST_KEPT);
        }
        assert!(!ask(&kept, 3 * MOST_KEPT as u64, dir.path(), start, true));
        let again = kept.get(id, &volume_dir, start + KEPT_FOR * 3, || unreachable!("it is kept"));
        assert!(Arc::ptr_eq(&read, &again.unwrap()));
        drop(read);
        ask(&kept, 2, dir.path(), start + KEPT_FOR * 9, true);
        assert!(kept.last(id).is_none());
    }

    #[test]
    fn one_volume_does_not_wait_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::default();
        let refused = || ApiError::new(ErrorCode::VolumeFailed, "nothing can be proven");
        let outer = kept.get(VolumeId::from_u64(1), dir.path(), Instant::now(), || {
            assert!(ask(&kept, 2, dir.path(), Instant::now(), true));
            assert!(kept.last(VolumeId::from_u64(1)).is_none());
            (Err(refused()), true)
        });
        assert!(outer.is_err());
    }
}
