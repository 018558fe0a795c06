//! Connections driven without sockets: for any receive and send boundaries and any order of work the replies
//! are the same.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use crate::connection::flow::{MAX_JOBS, REQUEST_OVERHEAD_BYTES};
use crate::connection::{Connection, ConnectionLimits, TlsOffer};
use crate::device::{
    BlockDevice, Client, DeviceError, ExportCatalog, ExportError, ExportInfo, Progress, StatusExtent,
    ZeroFlags,
};
use crate::protocol::constants::*;
use crate::protocol::reply::ReplyMode;
use crate::test_wire::Request;

mod tls;

const DEVICE_BYTES: usize = 4 << 20;
const EXPORTS: usize = 3000;
const LIMITS: ConnectionLimits = ConnectionLimits {
    handshake_timeout: Duration::from_secs(10),
    drain_timeout: Duration::from_secs(30),
    stalled_send_timeout: Duration::from_secs(60),
    stalled_receive_timeout: Duration::from_secs(10),
    in_flight_bytes: 1 << 20,
    idle_timeout: None,
};

/// Memory device that answers at once, or not, depending on the offset.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((0..DEVICE_BYTES).map(|index| (index / 7 % 251) as u8).collect())))
    }
}

fn at_once(offset_bytes: u64) -> bool {
    !(offset_bytes / 512).is_multiple_of(3)
}

impl BlockDevice for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.lock().len() as u64
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        if !at_once(offset_bytes) {
            return Ok(Progress::WouldBlock);
        }
        self.read(offset_bytes, buf)
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        buf.copy_from_slice(&self.0.lock()[offset_bytes as usize..][..buf.len()]);
        Ok(Progress::Done)
    }
    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        if !at_once(offset_bytes) {
            return Ok(Progress::WouldBlock);
        }
        self.write(offset_bytes, data, false).map(|()| Progress::Done)
    }
    fn write(&self, offset_bytes: u64, data: &[u8], _fua: bool) -> Result<(), DeviceError> {
        self.0.lock()[offset_bytes as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn block_status(
        &self,
        _: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        let data = self.0.lock();
        let end = offset_bytes + len_bytes;
        let mut at = offset_bytes;
        while at < end && extents.len() < max_extents {
            let next = (at / 20_000 * 20_000 + 20_000).min(end);
            let is_zero = data[at as usize..next as usize].iter().all(|byte| *byte == 0);
            extents.push(StatusExtent { len_bytes: next - at, flags: 3 * u32::from(is_zero) });
            at = next;
        }
        Ok(())
    }
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, _: ZeroFlags) -> Result<(), DeviceError> {
        self.0.lock()[offset_bytes as usize..][..len_bytes as usize].fill(0);
        Ok(())
    }
}

struct Single(Arc<Memory>);

impl ExportCatalog for Single {
    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        Ok(Arc::clone(&self.0) as Arc<dyn BlockDevice>)
    }
    fn list(&self, _: &Client) -> Vec<ExportInfo> {
        let export = |number| ExportInfo {
            name: format!("export {number}"),
            description: "d".repeat(if number < 100 { 4000 } else { 40 }),
            size_bytes: DEVICE_BYTES as u64,
            read_only: false,
        };
        (0..EXPORTS).map(export).collect()
    }
}

type Driver = crate::fuzzing::Driver<Single>;

impl Driver {
    fn new() -> Self {
        Self::with_limits(LIMITS)
    }

    fn with_limits(limits: ConnectionLimits) -> Self {
        Self::with_tls(limits, TlsOffer::Off)
    }

    fn with_tls(limits: ConnectionLimits, tls: TlsOffer) -> Self {
        Self::of_client(limits, tls, Client::default())
    }

    fn of_client(limits: ConnectionLimits, tls: TlsOffer, client: Client) -> Self {
        Self::over(Single(Memory::new()), limits, tls, client)
    }

    /// Creates a driver after the negotiation.
    fn attached(limits: ConnectionLimits) -> Self {
        Self::attached_in(ReplyMode::Simple, limits)
    }

    fn attached_in(mode: ReplyMode, limits: ConnectionLimits) -> Self {
        let mut driver = Self::with_limits(limits);
        let mut hello = 3_u32.to_be_bytes().to_vec();
        let option = match mode {
            ReplyMode::Simple => None,
            ReplyMode::Structured => Some(NBD_OPT_STRUCTURED_REPLY),
            ReplyMode::Extended => Some(NBD_OPT_EXTENDED_HEADERS),
        };
        if let Some(option) = option {
            hello.extend(OPTION_MAGIC.to_be_bytes());
            hello.extend(option.to_be_bytes());
            hello.extend(0_u32.to_be_bytes());
            hello.extend(OPTION_MAGIC.to_be_bytes());
            hello.extend(NBD_OPT_SET_META_CONTEXT.to_be_bytes());
            hello.extend(27_u32.to_be_bytes());
            hello.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15]);
            hello.extend(BASE_ALLOCATION.as_bytes());
        }
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(NBD_OPT_EXPORT_NAME.to_be_bytes());
        hello.extend(0_u32.to_be_bytes());
        driver.run(&hello, &[1 << 20]);
        driver.sent.clear();
        driver
    }
}

/// Decodes structured replies by cookie: error number and joined data, or other content.
fn chunks(mut sent: &[u8], extended: bool, reads: &BTreeMap<u64, usize>) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (mut open, mut replies) = (BTreeMap::new(), BTreeMap::new());
    while !sent.is_empty() {
        if number(&sent[..4]) == u64::from(SIMPLE_REPLY_MAGIC) {
            assert!(!extended && number(&sent[4..8]) == 0);
            assert!(replies.insert(number(&sent[8..16]), (0, Vec::new())).is_none());
            sent = &sent[16..];
            continue;
        }
        let header_len = if extended { 32 } else { 20 };
        let done = number(&sent[4..6]) == 1;
        let chunk_type = number(&sent[6..8]) as u16;
        let cookie = number(&sent[8..16]);
        let len = number(&sent[if extended { 24..32 } else { 16..20 }]) as usize;
        let payload = &sent[header_len..header_len + len];
        sent = &sent[header_len + len..];
        let (errno, data) = open
            .remove(&cookie)
            .unwrap_or_else(|| (0_u32, vec![0xdd_u8; reads.get(&cookie).copied().unwrap_or(0)]));
        let (mut errno, mut data): (u32, Vec<u8>) = (errno, data);
        let base = cookie as usize * (DEVICE_BYTES / 24);
        match chunk_type {
            NBD_REPLY_TYPE_OFFSET_DATA => {
                let at = number(&payload[..8]) as usize - base - shift_of(cookie);
                data[at..at + len - 8].copy_from_slice(&payload[8..]);
            }
            NBD_REPLY_TYPE_OFFSET_HOLE => {
                let at = number(&payload[..8]) as usize - base - shift_of(cookie);
                data[at..at + number(&payload[8..]) as usize].fill(0);
            }
            NBD_REPLY_TYPE_ERROR => {
                errno = number(&payload[..4]) as u32;
                data.clear();
            }
            NBD_REPLY_TYPE_NONE => {}
            _ => data = payload.to_vec(),
        }
        if done {
            assert!(replies.insert(cookie, (errno, data)).is_none(), "two replies to request {cookie}");
        } else {
            open.insert(cookie, (errno, data));
        }
    }
    assert!(open.is_empty(), "replies without an end");
    replies
}

/// Returns the offset of a request within its area.
fn shift_of(cookie: u64) -> usize {
    (cookie as usize * 397) % 1200
}

/// Decodes replies by cookie.
fn replies(mut sent: &[u8], reads: &BTreeMap<u64, usize>) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let mut replies = BTreeMap::new();
    while !sent.is_empty() {
        assert_eq!(sent[0..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let errno = u32::from_be_bytes(sent[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(sent[8..16].try_into().unwrap());
        let len = if errno == 0 { reads.get(&cookie).copied().unwrap_or(0) } else { 0 };
        let before = replies.insert(cookie, (errno, sent[16..16 + len].to_vec()));
        assert!(before.is_none(), "two replies to request {cookie}");
        sent = &sent[16 + len..];
    }
    replies
}

/// Generates requests on disjoint areas, so that their order does not matter.
fn any_requests() -> impl Strategy<Value = Vec<(u16, u16, usize)>> {
    let command = prop_oneof![3 => Just(NBD_CMD_READ), 3 => Just(NBD_CMD_WRITE), 1 => 3_u16..9];
    let flags = prop_oneof![4 => Just(0_u16), 1 => 0_u16..32];
    let len = prop_oneof![0_usize..100, 100_usize..9000, 30_000_usize..34_000, 100_000_usize..140_000];
    proptest::collection::vec((command, flags, len), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn replies_do_not_depend_on_timing(
        requests in any_requests(),
        mode in prop_oneof![Just(ReplyMode::Simple), Just(ReplyMode::Structured), Just(ReplyMode::Extended)],
        steps in proptest::collection::vec(prop_oneof![1_usize..50, 1_usize..200_000], 1..20),
    ) {
        let (mut input, mut reads) = (Vec::new(), BTreeMap::new());
        for (index, (command, flags, len)) in requests.iter().enumerate() {
            // Every 7th one is beyond the end.
            let place = if index % 7 == 6 { DEVICE_BYTES } else { index * (DEVICE_BYTES / 24) };
            let extended = mode == ReplyMode::Extended;
            let is_write = *command == NBD_CMD_WRITE;
            let mut flags = flags & !NBD_CMD_FLAG_PAYLOAD_LEN;
            if extended && is_write && index % 5 != 4 {
                flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
            }
            let request = Request {
                flags,
                command: *command,
                cookie: index as u64,
                offset_bytes: (place + shift_of(index as u64)) as u64,
                len_bytes: *len as u64,
            };
            if *command == NBD_CMD_DISC {
                continue;
            }
            match extended {
                true => input.extend(request.encode_extended()),
                false => input.extend(request.encode()),
            }
            if *command == NBD_CMD_WRITE || extended && flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
                input.extend((0..*len).map(|at| (at % 253) as u8 ^ index as u8));
            }
            if *command == NBD_CMD_READ {
                reads.insert(index as u64, *len);
            }
        }
        let run = |steps: &[usize]| {
            let mut driver = Driver::attached_in(mode, LIMITS);
            driver.run(&input, steps);
            let data = driver.catalog.0.0.lock().clone();
            let replies = match mode {
                ReplyMode::Simple => replies(&driver.sent, &reads),
                _ => chunks(&driver.sent, mode == ReplyMode::Extended, &reads),
            };
            (replies, data)
        };
        let (whole, whole_data) = run(&[1 << 20]);
        let (cut, cut_data) = run(&steps);
        prop_assert_eq!(whole.len(), requests.iter().filter(|request| request.0 != NBD_CMD_DISC).count());
        prop_assert!(whole == cut, "replies differ");
        prop_assert!(whole_data == cut_data, "contents differ");
    }

    #[test]
    fn random_bytes_end_a_connection_and_release_its_budget(
        noise in proptest::collection::vec(any::<u8>(), 0..3000),
        good in any::<bool>(),
        steps in proptest::collection::vec(1_usize..5000, 1..8),
    ) {
        let mut driver = if good { Driver::attached(LIMITS) } else { Driver::new() };
        driver.run(&noise, &steps);
        driver.tell(|connection, cx| connection.abort("the test is over", cx));
        prop_assert!(driver.connection.is_finished());
        driver.connection.release(&mut driver.pool, &driver.budget);
        prop_assert!(!driver.budget.is_exhausted());
        prop_assert!(driver.budget.used_bytes() == 0, "{} bytes are left charged", driver.budget.used_bytes());
        prop_assert_eq!(Arc::strong_count(&driver.catalog.0), 1);
    }
}

fn read_request(cookie: u64, len_bytes: u32) -> [u8; REQUEST_LEN_BYTES] {
    Request { flags: 0, command: NBD_CMD_READ, cookie, offset_bytes: 512, len_bytes: u64::from(len_bytes) }
        .encode()
}

/// Sends `request` until the connection accepts no more, without sending replies; returns accepted and
/// charged bytes.
fn flood(driver: &mut Driver, request: &[u8]) -> (usize, u64) {
    let mut taken_bytes = 0;
    let input = request.repeat(20_000);
    while let Some(len) = driver.receive_some(&input, usize::MAX) {
        taken_bytes += len;
        while driver.work_some(0) {}
        assert!(taken_bytes < 100 << 20, "it takes for ever");
    }
    (taken_bytes, driver.connection.charged_bytes())
}

#[test]
fn client_not_reading_is_bounded() {
    for len_bytes in [1, 4096, 100_000, 300_000] {
        let mut driver = Driver::attached(LIMITS);
        let (_, charged) = flood(&mut driver, &read_request(1, len_bytes));
        let one = u64::from(len_bytes) + REQUEST_OVERHEAD_BYTES;
        assert!(charged <= LIMITS.in_flight_bytes && charged > LIMITS.in_flight_bytes - one, "{charged}");
        // Once it reads, the rest is served.
        while driver.send_some(usize::MAX) || driver.work_some(0) {}
        assert!(driver.connection.start_receive(driver.now).is_some());
    }
    // Refusals are charged too.
    let mut driver = Driver::attached(LIMITS);
    let nonsense = Request { flags: 0, command: 77, cookie: 0, offset_bytes: 0, len_bytes: 0 }.encode();
    assert_eq!(flood(&mut driver, &nonsense).1, LIMITS.in_flight_bytes);
}

#[test]
fn request_refused_before_the_volume_grows_stays_refused() {
    let mut driver = Driver::attached(LIMITS);
    let len_bytes = LIMITS.in_flight_bytes - REQUEST_OVERHEAD_BYTES;
    let offset_bytes = DEVICE_BYTES as u64;
    let beyond = Request { flags: 0, command: NBD_CMD_READ, cookie: 2, offset_bytes, len_bytes: 512 };
    let input = [read_request(1, len_bytes as u32), beyond.encode()].concat();
    assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
    assert_eq!(
        driver.connection.charged_bytes(),
        LIMITS.in_flight_bytes,
        "the second one waits for the first"
    );
    driver.catalog.0.0.lock().resize(2 * DEVICE_BYTES, 7);
    while driver.send_some(usize::MAX) || driver.work_some(0) {}
    let answers = replies(&driver.sent, &[(1, len_bytes as usize), (2, 512)].into());
    assert_eq!((answers[&1].0, answers[&2].0), (0, NBD_EINVAL));
    // The next one is judged by the new size.
    driver.sent.clear();
    driver.run(&Request { cookie: 3, ..beyond }.encode(), &[1 << 20]);
    assert_eq!(replies(&driver.sent, &[(3, 512)].into())[&3], (0, vec![7; 512]));
}

#[test]
fn request_of_a_local_client_that_closed_its_side_is_dropped() {
    for is_local in [true, false] {
        let client = Client { is_local, ..Client::default() };
        let mut driver = Driver::of_client(LIMITS, TlsOffer::Off, client);
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(NBD_OPT_EXPORT_NAME.to_be_bytes());
        hello.extend(0_u32.to_be_bytes());
        driver.run(&hello, &[1 << 20]);
        driver.sent.clear();
        let before = driver.catalog.0.0.lock()[..100].to_vec();
        let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 100 };
        let input = [&write.encode()[..], &[99; 100]].concat();
        assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
        assert_eq!(driver.work.len(), 1);
        assert_eq!(driver.receive_some(&[], 1), Some(0));
        while driver.send_some(usize::MAX) || driver.work_some(0) {}
        assert!(driver.connection.is_finished());
        let expected = if is_local { before } else { vec![99; 100] };
        assert_eq!(driver.catalog.0.0.lock()[..100], expected);
        assert_eq!(driver.sent.is_empty(), is_local);
    }
}

/// A write processed a second after its possible receipt is dropped if its local client is gone: the kernel
/// has resent it on another connection, with newer writes behind it.
#[test]
fn late_write_of_a_disconnected_local_client_is_dropped() {
    let second_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    for (waited_in_inbox, is_gone) in [(true, true), (true, false), (false, true), (false, false)] {
        let client = Client { is_local: true, ..Client::default() };
        let mut driver = Driver::of_client(LIMITS, TlsOffer::Off, client);
        let (ours, theirs) = UnixStream::pair().unwrap();
        driver.connection.watch_local_peer(&Arc::new(ours.into()));
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(NBD_OPT_EXPORT_NAME.to_be_bytes());
        hello.extend(0_u32.to_be_bytes());
        driver.run(&hello, &[1 << 20]);
        let write =
            Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 512, len_bytes: 100 };
        let flush = Request { command: NBD_CMD_FLUSH, offset_bytes: 0, len_bytes: 0, ..write };
        let mut input = Vec::new();
        if waited_in_inbox {
            driver.now = second_ago;
            (0..MAX_JOBS).for_each(|_| input.extend(flush.encode()));
        }
        input.extend(write.encode());
        input.extend([99; 100]);
        driver.looked_before = second_ago;
        if is_gone && !waited_in_inbox {
            theirs.shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
        if is_gone && waited_in_inbox {
            theirs.shutdown(Shutdown::Both).unwrap();
        }
        while driver.work_some(0) {}
        let is_written = driver.catalog.0.0.lock()[512..612] == [99; 100];
        assert_eq!((is_written, driver.connection.is_aborted()), (!is_gone, is_gone), "{waited_in_inbox}");
    }
}

#[test]
fn request_above_limit_is_served_alone() {
    let limits = ConnectionLimits { in_flight_bytes: 100_000, ..LIMITS };
    let mut driver = Driver::attached(limits);
    driver.run(&[read_request(1, 2 << 20), read_request(2, 2 << 20)].concat(), &[1 << 20]);
    assert_eq!(driver.sent.len(), 2 * (16 + (2 << 20)));
    assert_eq!(driver.budget.used_bytes(), 0);
}

#[test]
fn after_a_large_write_only_the_next_header_is_received() {
    let mut driver = Driver::attached(LIMITS);
    let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 300_000 };
    driver.run(&[&write.encode()[..], &vec![1; 300_000]].concat(), &[1 << 20]);
    let transfer = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(transfer.range.len(), REQUEST_LEN_BYTES);
    driver.tell(|connection, cx| {
        let mut buffer = transfer.buffer;
        buffer.framed_mut()[transfer.range].copy_from_slice(&write.encode());
        connection.end_receive(buffer, Ok(REQUEST_LEN_BYTES), cx);
    });
    let payload = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(payload.range.len(), 300_000, "straight into its own buffer");
}

#[test]
fn times_are_kept() {
    let mut driver = Driver::new();
    let at = |driver: &mut Driver, seconds: u64| {
        driver.now += Duration::from_secs(seconds);
        driver.tell(Connection::check_time);
        driver.connection.is_aborted()
    };
    assert!(!at(&mut driver, 9));
    assert!(at(&mut driver, 2), "negotiating for 11 s");

    let mut driver = Driver::attached(LIMITS);
    assert!(!at(&mut driver, 3600));
    driver.run(&read_request(1, 100), &[1]);
    let transfer = driver.receive_some(&read_request(2, 100), 1000);
    assert_eq!(transfer, Some(28));
    let _sending = driver.connection.start_send(driver.now, &mut driver.pool).unwrap();
    assert!(!at(&mut driver, 61), "a slow reader delays no other");
    driver.budget.wait_for_ever(Box::new(|| {}));
    assert!(!at(&mut driver, 59));
    assert!(at(&mut driver, 2), "others wait for it");

    // Reading a little now and then does not help.
    let mut driver = Driver::attached(LIMITS);
    driver.receive_some(&read_request(1, 300_000), 1000);
    driver.work_some(0);
    driver.budget.wait_for_ever(Box::new(|| {}));
    for second in 0..60 {
        assert!(driver.send_some(1));
        assert_eq!(at(&mut driver, 1), second == 59);
    }

    let mut driver = Driver::attached(LIMITS);
    driver.receive_some(&read_request(1, 300_000), 1000);
    driver.tell(|connection, cx| connection.drain("the test ends it", cx));
    assert!(!at(&mut driver, 29));
    assert!(!driver.connection.is_finished(), "a request is in flight");
    assert!(at(&mut driver, 2));
    assert!(!driver.connection.is_finished(), "and still is");
    driver.work_some(0);
    assert!(driver.connection.is_finished());
}

#[test]
fn stalled_payload_is_dropped_when_others_wait() {
    let at = |driver: &mut Driver, seconds: u64| {
        driver.now += Duration::from_secs(seconds);
        driver.tell(Connection::check_time);
        driver.connection.is_aborted()
    };
    // One payload is kept in its own buffer, the other is discarded.
    for offset_bytes in [0, DEVICE_BYTES as u64] {
        let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes, len_bytes: 300_000 };
        let mut driver = Driver::attached(LIMITS);
        assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
        let _first = driver.connection.start_receive(driver.now).unwrap();
        let soon = driver.now + Duration::from_secs(10);
        assert_eq!(driver.connection.next_check(), Some(soon));
        assert!(!at(&mut driver, 11), "no request waits");
        driver.budget.wait_for_ever(Box::new(|| {}));
        assert!(!at(&mut driver, 9));
        assert!(at(&mut driver, 1), "others wait");
        assert_eq!(driver.connection.next_check(), None);

        let mut driver = Driver::attached(LIMITS);
        assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
        driver.budget.wait_for_ever(Box::new(|| {}));
        for second in 0..10 {
            let mut slow = driver.connection.start_receive(driver.now).unwrap();
            slow.buffer.framed_mut()[slow.range.start] = 7;
            assert_eq!(at(&mut driver, 1), second == 9, "a byte a second, for {second} s");
            driver.tell(|connection, cx| connection.end_receive(slow.buffer, Ok(1), cx));
        }
    }
    // A client that makes progress is not dropped.
    let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 3 << 20 };
    let mut driver = Driver::attached(LIMITS);
    assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
    driver.budget.wait_for_ever(Box::new(|| {}));
    for _ in 0..6 {
        assert_eq!(driver.receive_some(&[7; 1 << 19], usize::MAX), Some(1 << 19));
        assert!(!at(&mut driver, 4));
    }
    // Between requests nothing is held that others could wait for.
    let mut driver = Driver::attached(LIMITS);
    driver.budget.wait_for_ever(Box::new(|| {}));
    let _idle = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(driver.connection.next_check(), None);
    assert!(!at(&mut driver, 3600));
}

#[test]
fn leaving_client_gets_every_reply() {
    let mut driver = Driver::attached(LIMITS);
    let bye = Request { flags: 0, command: NBD_CMD_DISC, cookie: 9, offset_bytes: 0, len_bytes: 0 }.encode();
    let requests = [read_request(1, 200_000), read_request(2, 200_000), read_request(3, 10), bye].concat();
    assert_eq!(driver.receive_some(&requests, usize::MAX), Some(requests.len()));
    while !driver.connection.is_finished() {
        assert!(driver.send_some(70_000) || driver.work_some(0), "stuck");
    }
    assert_eq!(driver.sent.len(), 3 * SIMPLE_REPLY_LEN_BYTES + 400_010);
}

#[test]
fn beyond_the_bound_of_all_only_a_little_is_taken() {
    let mut driver = Driver::attached(LIMITS);
    // Others have used all budget.
    driver.budget.exhaust();
    assert_eq!(driver.receive_some(&read_request(1, 300_000), 100), Some(28));
    assert!(driver.work.is_empty());
    assert!(driver.connection.start_receive(driver.now).is_none(), "it waits");
    driver.budget.release(1 << 30);
    driver.tell(Connection::retry);
    while driver.send_some(usize::MAX) || driver.work_some(0) {}
    assert_eq!(driver.sent.len(), SIMPLE_REPLY_LEN_BYTES + 300_000);

    let mut driver = Driver::attached(LIMITS);
    driver.budget.exhaust();
    let (_, charged) = flood(&mut driver, &read_request(1, 4096));
    assert_eq!(charged, crate::connection::flow::GUARANTEED_BYTES);
    assert!(driver.budget.is_exhausted(), "it waits for more");
    // A leaving client stops waiting and delays no other.
    driver.tell(|connection, cx| connection.abort("the test ends it", cx));
    assert!(!driver.budget.is_exhausted());
}

#[test]
fn negotiation_reply_precedes_requests() {
    let mut driver = Driver::new();
    assert!(driver.send_some(usize::MAX), "the greeting");
    let mut input = 3_u32.to_be_bytes().to_vec();
    input.extend(OPTION_MAGIC.to_be_bytes());
    input.extend(NBD_OPT_EXPORT_NAME.to_be_bytes());
    input.extend(0_u32.to_be_bytes());
    // Answered at once from its own buffer: it must not overtake.
    input.extend(read_request(1, 200_000));
    assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
    while driver.work_some(0) {}
    while driver.send_some(usize::MAX) || driver.work_some(0) {}
    let answer = &driver.sent[GREETING_LEN_BYTES..];
    assert_eq!(answer[..8], (DEVICE_BYTES as u64).to_be_bytes());
    assert_eq!(answer.len(), 10 + SIMPLE_REPLY_LEN_BYTES + 200_000);
    assert_eq!(answer[10..14], SIMPLE_REPLY_MAGIC.to_be_bytes());
}

#[test]
fn single_connection_does_not_occupy_all_workers() {
    let trim = Request { flags: 0, command: NBD_CMD_TRIM, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    let mut driver = Driver::attached(LIMITS);
    let input = trim.encode().repeat(3 * MAX_JOBS);
    assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
    assert_eq!(driver.work.len(), MAX_JOBS);
    assert!(driver.connection.start_receive(driver.now).is_none(), "it waits");
    driver.work_some(0);
    assert_eq!(driver.work.len(), MAX_JOBS, "one was done, the next one came");
    while driver.work_some(0) || driver.send_some(usize::MAX) {}
    assert_eq!(driver.sent.len(), 3 * MAX_JOBS * SIMPLE_REPLY_LEN_BYTES);
    assert!(driver.connection.start_receive(driver.now).is_some());
}

#[test]
fn dropped_connection_gets_no_more_work() {
    let zeroes =
        Request { flags: 0, command: NBD_CMD_WRITE_ZEROES, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    let mut driver = Driver::attached(LIMITS);
    let before = driver.catalog.0.0.lock().clone();
    driver.receive_some(&zeroes.encode(), usize::MAX);
    driver.tell(|connection, cx| connection.abort("the test ends it", cx));
    assert!(driver.work_some(0), "it was handed out already");
    assert!(*driver.catalog.0.0.lock() == before);
    assert!(driver.connection.is_finished());
}

#[test]
fn block_status_with_payload_sees_growth() {
    let mut driver = Driver::attached_in(ReplyMode::Extended, LIMITS);
    driver.catalog.0.0.lock().extend([0; 40_000]);
    let offset_bytes = DEVICE_BYTES as u64 - 20_000;
    let flags = NBD_CMD_FLAG_PAYLOAD_LEN;
    let request = Request { flags, command: NBD_CMD_BLOCK_STATUS, cookie: 1, offset_bytes, len_bytes: 12 };
    let input = [&request.encode_extended()[..], &60_000_u64.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    driver.run(&input, &[1 << 20]);
    let reply = chunks(&driver.sent, true, &BTreeMap::new());
    assert_eq!(reply[&1].0, 0, "no error");
}

#[test]
fn oversized_context_selection_leaves_none() {
    let mut driver = Driver::new();
    let mut hello = 3_u32.to_be_bytes().to_vec();
    let mut option = |option: u32, data: &[u8]| {
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(option.to_be_bytes());
        hello.extend((data.len() as u32).to_be_bytes());
        hello.extend(data);
    };
    option(NBD_OPT_STRUCTURED_REPLY, &[]);
    let base = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15], BASE_ALLOCATION.as_bytes()].concat();
    option(NBD_OPT_SET_META_CONTEXT, &base);
    option(NBD_OPT_SET_META_CONTEXT, &[0; 70_000]);
    option(NBD_OPT_EXPORT_NAME, &[]);
    driver.run(&hello, &[1 << 20]);
    driver.sent.clear();
    let status =
        Request { flags: 0, command: NBD_CMD_BLOCK_STATUS, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    driver.run(&status.encode(), &[1 << 20]);
    assert_eq!(chunks(&driver.sent, false, &BTreeMap::new())[&1].0, NBD_EINVAL);
}

#[test]
fn idle_local_device_stays_connected() {
    let limits = ConnectionLimits { idle_timeout: Some(Duration::from_secs(60)), ..LIMITS };
    for is_local in [false, true] {
        let client = Client { is_local, ..Client::default() };
        let mut driver = Driver::of_client(limits, TlsOffer::Off, client);
        let request =
            [&3_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
        driver.run(&request, &[1 << 20]);
        driver.now += Duration::from_secs(61);
        driver.tell(Connection::check_time);
        assert_eq!(driver.connection.start_receive(driver.now).is_some(), is_local);
    }
}

#[test]
fn long_listing_is_streamed() {
    let mut driver = Driver::new();
    let hello = [&3_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &NBD_OPT_LIST.to_be_bytes(), &[0; 4]];
    let hello = hello.concat();
    assert!(driver.send_some(usize::MAX), "the greeting");
    driver.sent.clear();
    assert_eq!(driver.receive_some(&hello, usize::MAX), Some(hello.len()));
    let mut parts = 0;
    while driver.work_some(0) {
        assert!(driver.work.is_empty(), "nothing more is asked for before that is sent");
        let before = driver.sent.len();
        while driver.send_some(50_000) {}
        assert!(driver.sent.len() - before < 140 << 10);
        parts += 1;
    }
    assert!(parts > 5);
    let number = |bytes: &[u8]| bytes.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
    let (mut rest, mut names) = (&driver.sent[..], Vec::new());
    while number(&rest[12..16]) == NBD_REP_SERVER as usize {
        let (len, name_len) = (number(&rest[16..20]), number(&rest[20..24]));
        names.push(String::from_utf8(rest[24..24 + name_len].to_vec()).unwrap());
        rest = &rest[20 + len..];
    }
    assert_eq!(number(&rest[12..16]), NBD_REP_ACK as usize);
    assert_eq!(rest.len(), 20);
    assert!(names.into_iter().eq((0..EXPORTS).map(|number| format!("export {number}"))));
    assert!(driver.connection.start_receive(driver.now).is_some(), "the next option");
}
