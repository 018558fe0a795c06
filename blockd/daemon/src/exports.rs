//! Volumes as NBD exports: the name of the export is the name of the volume, and the empty name is the only volume
//! where there is exactly one.

use crate::{
    access::Access,
    registry::{Attachment, EntryState, Registry},
};
use blockd_nbd::{
    BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    ZeroFlags,
};
use blockd_volume::{Volume, VolumeError, VolumeErrorKind};
use std::sync::Arc;

/// The registry, as the NBD server sees it.
#[derive(Debug, Clone)]
pub struct Exports {
    registry: Arc<Registry>,
    access: Arc<Access>,
}

impl Exports {
    /// The exports of this registry, for everybody.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, access: Arc::default() }
    }

    /// The same for some only.
    pub fn with_access(self, access: Arc<Access>) -> Self {
        Self { access, ..self }
    }
}

impl ExportCatalog for Exports {
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        let entry = if name.is_empty() {
            let mut all = self.registry.all();
            match (all.pop(), all.is_empty()) {
                (Some(only), true) => Some(only),
                _ => None,
            }
        } else {
            self.registry.by_name(name)
        };
        let entry = entry.ok_or(ExportError::Unknown)?;
        self.access.check(entry.name.as_str(), client)?;
        match entry.attach_up_to(self.access.max_connections()) {
            Ok((volume, attachment)) => Ok(Arc::new(Device { volume, attachment })),
            Err(error) => Err(ExportError::Unavailable { reason: error.message }),
        }
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        let entries = self.registry.all().into_iter();
        entries
            .filter(|entry| matches!(entry.view().state, EntryState::Up(_)))
            .filter(|entry| self.access.allows(entry.name.as_str(), client))
            .map(|entry| ExportInfo {
                name: entry.name.to_string(),
                description: format!("volume {}", entry.id),
                size_bytes: entry.size_bytes,
                read_only: false,
            })
            .collect()
    }
}

/// One connection's volume.
struct Device {
    volume: Arc<Volume>,
    attachment: Attachment,
}

impl Device {
    fn done<T>(&self, result: Result<T, VolumeError>) -> Result<T, DeviceError> {
        result.map_err(|error| {
            let kind = match error.kind() {
                VolumeErrorKind::InvalidInput => DeviceErrorKind::InvalidInput,
                VolumeErrorKind::NoSpace => DeviceErrorKind::NoSpace,
                VolumeErrorKind::Closed => DeviceErrorKind::Shutdown,
                _ => DeviceErrorKind::Io,
            };
            if error.kind() == VolumeErrorKind::Failed {
                self.attachment.entry().note_fault(&error.to_string());
            }
            DeviceError::new(kind, error.to_string())
        })
    }

    fn tried(&self, result: Result<bool, VolumeError>) -> Result<Progress, DeviceError> {
        self.done(result).map(|done| if done { Progress::Done } else { Progress::WouldBlock })
    }
}

impl BlockDevice for Device {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.tried(self.volume.try_read(offset_bytes, buf))
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.done(self.volume.read(offset_bytes, buf)).map(|()| Progress::Done)
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        self.tried(self.volume.try_write(offset_bytes, data))
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.done(self.volume.write(offset_bytes, data, fua))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.done(self.volume.flush())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.done(self.volume.trim(offset_bytes, len_bytes, fua))
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.done(self.volume.write_zeroes(offset_bytes, len_bytes, flags.no_hole, flags.fua))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{VolumeRow, VolumeState},
        registry::VolumeEntry,
    };
    use blockd_extent::VolumeId;

    fn add(registry: &Registry, dir: &std::path::Path, number: u64, name: &str) -> Arc<VolumeEntry> {
        let id = VolumeId::from_u64(number);
        let row = VolumeRow {
            id,
            name: name.parse().unwrap(),
            size_bytes: 1 << 20,
            labels: Default::default(),
            created: jiff::Timestamp::UNIX_EPOCH,
            state: VolumeState::Up,
        };
        let volume = Volume::create(&dir.join(name), id, 1 << 20).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        registry.insert(Arc::clone(&entry));
        entry
    }

    #[test]
    fn exports_are_found_counted_and_served() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::default());
        let exports = Exports::new(Arc::clone(&registry));
        assert!(matches!(exports.open("", &Client::default()), Err(ExportError::Unknown)));
        let first = add(&registry, dir.path(), 1, "one");
        let device = exports.open("", &Client::default()).unwrap();
        assert_eq!(first.view().connections, 1);
        device.write(1000, &[7; 3000], true).unwrap();
        let mut read = [0; 3000];
        exports.open("one", &Client::default()).unwrap().read(1000, &mut read).unwrap();
        assert_eq!(read, [7; 3000]);
        assert_eq!(device.write(1 << 20, &[1], false).unwrap_err().kind(), DeviceErrorKind::InvalidInput);
        drop(device);
        assert_eq!(first.view().connections, 0);

        add(&registry, dir.path(), 2, "two");
        assert!(matches!(exports.open("", &Client::default()), Err(ExportError::Unknown)));
        assert!(matches!(exports.open("three", &Client::default()), Err(ExportError::Unknown)));
        first.set_state(EntryState::Failed("its disk is gone".into()));
        let Err(ExportError::Unavailable { reason }) = exports.open("one", &Client::default()) else {
            panic!("it was served")
        };
        assert!(reason.contains("its disk is gone"), "{reason}");
        let names: Vec<_> = exports.list(&Client::default()).into_iter().map(|export| export.name).collect();
        assert_eq!(names, ["two"]);
    }

    #[test]
    fn exports_are_for_those_who_may_and_for_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::default());
        add(&registry, dir.path(), 1, "one");
        add(&registry, dir.path(), 2, "two");
        let lists = [("one".to_owned(), vec!["alice".to_owned()])].into();
        let exports = Exports::new(registry).with_access(Arc::new(Access::new(lists, 2)));
        let client = |name: &str| Client { certificate_names: vec![name.to_owned()], ..Client::default() };
        let names = |client: &Client| -> Vec<_> {
            exports.list(client).into_iter().map(|export| export.name).collect()
        };
        assert_eq!(names(&client("alice")), ["one", "two"]);
        assert_eq!(names(&client("bob")), ["two"]);
        assert!(matches!(exports.open("one", &client("bob")), Err(ExportError::Denied { .. })));
        let first = exports.open("one", &client("alice")).unwrap();
        let _second = exports.open("one", &client("alice")).unwrap();
        let Err(ExportError::Unavailable { reason }) = exports.open("one", &client("alice")) else {
            panic!("a third one was let in")
        };
        assert!(reason.contains("2 NBD connections"), "{reason}");
        drop(first);
        assert!(exports.open("one", &client("alice")).is_ok());
        assert!(exports.open("two", &client("bob")).is_ok(), "each volume has its own count");
    }
}
