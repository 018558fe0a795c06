//! In-memory device of fuzzed connections: it logs changes, completes requests at once or defers them
//! depending on the offset, and fails in some areas.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, LazyLock};

use blockd_nbd::constants::{BASE_ALLOCATION, STATE_DIRTY, STATE_HOLE, STATE_ZERO};
use blockd_nbd::{
    BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    StatusExtent, ZeroFlags,
};
use parking_lot::Mutex;

use super::TIMEOUT;

/// Size: large enough for every path of reads and writes.
pub(super) const SIZE_BYTES: usize = 320 << 10;
/// Granularity.
const BLOCK_BYTES: usize = 4096;
/// Contexts besides `base:allocation`: a bitmap with every other block dirty, and a clean one.
pub(super) const BITMAPS: [&str; 2] = ["qemu:dirty-bitmap:odd", "qemu:dirty-bitmap:none"];
/// Area where reads and trims fail.
pub(super) const BAD: Range<usize> = 70 * BLOCK_BYTES..71 * BLOCK_BYTES;
/// Area where writes and zeroes fail.
pub(super) const FULL: Range<usize> = 75 * BLOCK_BYTES..76 * BLOCK_BYTES;
/// Longer zeroes are not fast.
pub(super) const FAST_ZERO_BYTES: u64 = 64 << 10;

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let is_data = |block| !matches!(block, 16..32 | 48..60 | 62..68);
    let byte = |index: usize| if is_data(index / BLOCK_BYTES) { (index / 7 % 251) as u8 + 1 } else { 0 };
    (0..SIZE_BYTES).map(byte).collect()
});

/// Returns the initial content.
pub(super) fn first_content() -> Vec<u8> {
    CONTENT.clone()
}

fn first_state() -> Arc<Mutex<State>> {
    Arc::new(Mutex::new(State { content: first_content(), log: Vec::new() }))
}

/// Returns true if a range touches an area.
pub(super) fn touches(area: &Range<usize>, offset_bytes: u64, len_bytes: u64) -> bool {
    offset_bytes < area.end as u64 && offset_bytes + len_bytes > area.start as u64
}

/// Change of content.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Change {
    Data { offset_bytes: u64, data: Vec<u8> },
    Zeroes { offset_bytes: u64, len_bytes: u64 },
}

impl Change {
    pub(super) fn apply(&self, content: &mut [u8]) {
        match self {
            Self::Data { offset_bytes, data } => {
                content[*offset_bytes as usize..][..data.len()].copy_from_slice(data);
            }
            Self::Zeroes { offset_bytes, len_bytes } => {
                content[*offset_bytes as usize..][..*len_bytes as usize].fill(0);
            }
        }
    }

    pub(super) fn range(&self) -> Range<usize> {
        let (start, len) = match self {
            Self::Data { offset_bytes, data } => (*offset_bytes as usize, data.len()),
            Self::Zeroes { offset_bytes, len_bytes } => (*offset_bytes as usize, *len_bytes as usize),
        };
        start..start + len
    }
}

struct State {
    content: Vec<u8>,
    log: Vec<Change>,
}

/// Device of one connection.
struct FuzzDevice {
    read_only: bool,
    state: Arc<Mutex<State>>,
    _held: Sender<Infallible>,
}

impl FuzzDevice {
    fn change(&self, change: Change) -> Result<(), DeviceError> {
        assert!(!self.read_only, "a read-only device is never written");
        let range = change.range();
        assert!(range.end <= SIZE_BYTES && !range.is_empty(), "the server checks ranges: {range:?}");
        if touches(&FULL, range.start as u64, range.len() as u64) {
            return Err(DeviceError::new(DeviceErrorKind::NoSpace, "full"));
        }
        let mut state = self.state.lock();
        change.apply(&mut state.content);
        state.log.push(change);
        Ok(())
    }
}

fn completes_at_once(offset_bytes: u64) -> bool {
    !(offset_bytes / 512).is_multiple_of(3)
}

/// Returns true if a bitmap reports a block as dirty.
fn is_dirty(context: &str, block: usize) -> bool {
    context == BITMAPS[0] && block % 2 == 1
}

/// Returns the flags of a block of `content` in a context.
pub(super) fn flags_of(context: &str, content: &[u8], block: usize) -> u32 {
    if context == BASE_ALLOCATION {
        let is_zero = content[block * BLOCK_BYTES..][..BLOCK_BYTES].iter().all(|byte| *byte == 0);
        return if is_zero { STATE_HOLE | STATE_ZERO } else { 0 };
    }
    if is_dirty(context, block) { STATE_DIRTY } else { 0 }
}

impl BlockDevice for FuzzDevice {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        // Old content of the buffer must not be visible.
        buf.fill(0xee);
        if completes_at_once(offset_bytes) { self.read(offset_bytes, buf) } else { Ok(Progress::WouldBlock) }
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        assert!(!buf.is_empty() && offset_bytes + buf.len() as u64 <= SIZE_BYTES as u64);
        if touches(&BAD, offset_bytes, buf.len() as u64) {
            return Err(DeviceError::new(DeviceErrorKind::Io, "bad"));
        }
        let state = self.state.lock();
        let data = &state.content[offset_bytes as usize..][..buf.len()];
        if data.iter().all(|byte| *byte == 0) {
            buf.fill(0xee);
            return Ok(Progress::Zeroes);
        }
        buf.copy_from_slice(data);
        Ok(Progress::Done)
    }
    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        if !completes_at_once(offset_bytes) {
            return Ok(Progress::WouldBlock);
        }
        self.write(offset_bytes, data, false).map(|()| Progress::Done)
    }
    fn write(&self, offset_bytes: u64, data: &[u8], _fua: bool) -> Result<(), DeviceError> {
        self.change(Change::Data { offset_bytes, data: data.to_vec() })
    }
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn trim(&self, offset_bytes: u64, len_bytes: u64, _: bool) -> Result<(), DeviceError> {
        if touches(&BAD, offset_bytes, len_bytes) {
            return Err(DeviceError::new(DeviceErrorKind::Io, "bad"));
        }
        self.change(Change::Zeroes { offset_bytes, len_bytes })
    }
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        if flags.fast && len_bytes > FAST_ZERO_BYTES {
            return Err(DeviceError::new(DeviceErrorKind::NotSupported, "slow"));
        }
        self.change(Change::Zeroes { offset_bytes, len_bytes })
    }
    fn meta_contexts(&self) -> Vec<String> {
        [&[BASE_ALLOCATION], &BITMAPS[..]].concat().into_iter().map(str::to_owned).collect()
    }
    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        let state = self.state.lock();
        let (mut at, end) = (offset_bytes as usize, (offset_bytes + len_bytes) as usize);
        while at < end {
            let block = at / BLOCK_BYTES;
            let next = ((block + 1) * BLOCK_BYTES).min(end);
            let flags = flags_of(context, &state.content, block);
            let is_full = extents.len() == max_extents;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += (next - at) as u64,
                _ if is_full => break,
                _ => extents.push(StatusExtent { len_bytes: (next - at) as u64, flags }),
            }
            at = next;
        }
        Ok(())
    }
}

/// Result of opening an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Export {
    Writable,
    ReadOnly,
    /// It exists but is not available.
    Refused,
    Unknown,
}

/// Returns the export of a name. The default one is writable.
pub(super) fn export(name: &str) -> Export {
    match name {
        "" | "a" => Export::Writable,
        "ro" => Export::ReadOnly,
        "busy" | "secret" => Export::Refused,
        _ => Export::Unknown,
    }
}

/// Listed exports.
pub(super) const LISTED: [&str; 3] = ["a", "ro", "busy"];

/// Exports of one client.
pub(super) struct Exports {
    state: Arc<Mutex<State>>,
    held: Sender<Infallible>,
}

impl Exports {
    /// Creates exports, and a receiver that is disconnected when they and all opened devices are dropped.
    pub(super) fn new() -> (Self, Receiver<Infallible>) {
        let (held, released) = mpsc::channel();
        (Self { state: first_state(), held }, released)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, ExportError> {
        let read_only = match (export(name), name) {
            (Export::Writable, _) => false,
            (Export::ReadOnly, _) => true,
            (Export::Refused, "busy") => return Err(ExportError::Unavailable { reason: "busy".into() }),
            (Export::Refused, _) => return Err(ExportError::Denied { reason: "secret".into() }),
            (Export::Unknown, _) => return Err(ExportError::Unknown),
        };
        let state = if read_only { first_state() } else { Arc::clone(&self.state) };
        Ok(Arc::new(FuzzDevice { read_only, state, _held: self.held.clone() }))
    }
}

/// Exports by address of the client.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<String, Exports>>);

impl Clients {
    pub(super) fn add(&self, peer: SocketAddr, exports: Exports) {
        self.0.lock().insert(format!("tcp://{peer}"), exports);
    }

    /// Removes a client; returns the changes to its writable export in order, once no device is held.
    pub(super) fn remove(&self, peer: SocketAddr, released: &Receiver<Infallible>) -> Vec<Change> {
        let exports = self.0.lock().remove(&format!("tcp://{peer}")).unwrap();
        let state = exports.state;
        drop(exports.held);
        let end = released.recv_timeout(TIMEOUT);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected), "a closed connection keeps its device");
        std::mem::take(&mut state.lock().log)
    }
}

impl ExportCatalog for Clients {
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        self.0.lock().get(&client.peer).ok_or(ExportError::Unknown)?.open(name)
    }
    fn list(&self, _: &Client) -> Vec<ExportInfo> {
        let info = |name: &&str| ExportInfo {
            name: (*name).to_owned(),
            description: format!("the export {name}"),
            size_bytes: SIZE_BYTES as u64,
            read_only: *name == "ro",
        };
        LISTED.iter().map(info).collect()
    }
}
