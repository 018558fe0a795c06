//! Connections driven without sockets: replies are independent of receive and send boundaries and of the
//! order of jobs.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::config::ServerConfig;
use crate::connection::Connection;
use crate::connection::flow::{MAX_JOBS, REQUEST_OVERHEAD_BYTES};
use crate::device::{BlockDevice, Client, ExportCatalog, ExportError, ExportInfo};
use crate::protocol::constants::*;
use crate::protocol::reply::ReplyMode;
use crate::test_device::{Behaviour, MemDevice};
use crate::test_wire::{Request, hello, meta_request};
use crate::tls::identity::TlsMode;

mod decode;
mod driver;
mod limits;
mod tls;
mod tls_driver;

use decode::{chunks, replies, shift_of};
use driver::Driver;

const DEVICE_BYTES: usize = 4 << 20;
const EXPORT_COUNT: usize = 3000;
const IN_FLIGHT_BYTES: u64 = 1 << 20;

fn limits() -> ServerConfig {
    ServerConfig { in_flight_bytes_per_connection: IN_FLIGHT_BYTES, ..ServerConfig::default() }
}

fn device() -> Arc<MemDevice> {
    let device = MemDevice::new(DEVICE_BYTES, Behaviour::Mixed);
    *device.data.lock().unwrap() = (0..DEVICE_BYTES).map(|index| (index / 7 % 251) as u8).collect();
    Arc::new(device)
}

/// Catalog with one device and a long export list.
struct Single(Arc<MemDevice>);

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
        (0..EXPORT_COUNT).map(export).collect()
    }
}

/// Generates requests on disjoint areas, which may be executed in any order.
fn any_requests() -> impl Strategy<Value = Vec<(u16, u16, usize)>> {
    let command = prop_oneof![3 => Just(NBD_CMD_READ), 3 => Just(NBD_CMD_WRITE), 1 => 3_u16..9];
    let flags = prop_oneof![4 => Just(0_u16), 1 => 0_u16..32];
    let len = prop_oneof![0_usize..100, 100_usize..9000, 30_000_usize..34_000, 100_000_usize..140_000];
    proptest::collection::vec((command, flags, len), 1..24)
}

/// Encodes requests with their payloads; returns the bytes, and the lengths of the reads by cookie.
fn conversation(mode: ReplyMode, requests: &[(u16, u16, usize)]) -> (Vec<u8>, BTreeMap<u64, usize>) {
    let (mut input, mut reads) = (Vec::new(), BTreeMap::new());
    for (index, (command, flags, len)) in requests.iter().enumerate() {
        if *command == NBD_CMD_DISC {
            continue;
        }
        // Every 7th request is beyond the end.
        let area = if index % 7 == 6 { DEVICE_BYTES } else { index * (DEVICE_BYTES / 24) };
        let cookie = index as u64;
        let offset_bytes = (area + shift_of(cookie)) as u64;
        let mut request =
            Request { flags: *flags, command: *command, cookie, offset_bytes, len_bytes: *len as u64 };
        if mode == ReplyMode::Extended {
            request.flags &= !NBD_CMD_FLAG_PAYLOAD_LEN;
            if *command == NBD_CMD_WRITE && index % 5 != 4 {
                request.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
            }
            input.extend(request.encode_extended());
        } else {
            input.extend(request.encode());
        }
        if *command == NBD_CMD_WRITE {
            input.extend((0..*len).map(|at| (at % 253) as u8 ^ index as u8));
        }
        if *command == NBD_CMD_READ {
            reads.insert(cookie, *len);
        }
    }
    (input, reads)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn replies_are_independent_of_timing(
        requests in any_requests(),
        mode in prop_oneof![Just(ReplyMode::Simple), Just(ReplyMode::Structured), Just(ReplyMode::Extended)],
        steps in proptest::collection::vec(prop_oneof![1_usize..50, 1_usize..200_000], 1..20),
    ) {
        let (input, reads) = conversation(mode, &requests);
        let run = |steps: &[usize]| {
            let mut driver = Driver::attached_in(mode, limits());
            driver.run(&input, steps);
            let data = driver.catalog.0.data.lock().unwrap().clone();
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
}

fn read_request(cookie: u64, len_bytes: u32) -> [u8; REQUEST_LEN_BYTES] {
    Request { flags: 0, command: NBD_CMD_READ, cookie, offset_bytes: 512, len_bytes: u64::from(len_bytes) }
        .encode()
}

#[test]
fn request_refused_before_growth_stays_refused() {
    let mut driver = Driver::attached(limits());
    let len_bytes = IN_FLIGHT_BYTES - REQUEST_OVERHEAD_BYTES;
    let offset_bytes = DEVICE_BYTES as u64;
    let beyond = Request { flags: 0, command: NBD_CMD_READ, cookie: 2, offset_bytes, len_bytes: 512 };
    let input = [read_request(1, len_bytes as u32), beyond.encode()].concat();
    assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
    assert_eq!(driver.connection.charged_bytes(), IN_FLIGHT_BYTES, "the second request waits for the first");
    driver.catalog.0.data.lock().unwrap().resize(2 * DEVICE_BYTES, 7);
    while driver.send_some(usize::MAX) || driver.work_some(0) {}
    let answers = replies(&driver.sent, &[(1, len_bytes as usize), (2, 512)].into());
    assert_eq!((answers[&1].0, answers[&2].0), (0, NBD_EINVAL));
    // The next request is validated against the new size.
    driver.sent.clear();
    driver.run(&Request { cookie: 3, ..beyond }.encode(), &[1 << 20]);
    assert_eq!(replies(&driver.sent, &[(3, 512)].into())[&3], (0, vec![7; 512]));
}

#[test]
fn request_of_a_disconnected_local_client_is_dropped() {
    for is_local in [true, false] {
        let client = Client { is_local, ..Client::default() };
        let mut driver = Driver::of_client(limits(), TlsMode::Off, client);
        driver.run(&hello(&[(NBD_OPT_EXPORT_NAME, b"")]), &[1 << 20]);
        driver.sent.clear();
        let before = driver.catalog.0.data.lock().unwrap()[..100].to_vec();
        let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 100 };
        let input = [&write.encode()[..], &[99; 100]].concat();
        assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
        assert_eq!(driver.work.len(), 1);
        assert_eq!(driver.receive_some(&[], 1), Some(0));
        while driver.send_some(usize::MAX) || driver.work_some(0) {}
        assert!(driver.connection.is_finished());
        let expected = if is_local { before } else { vec![99; 100] };
        assert_eq!(driver.catalog.0.data.lock().unwrap()[..100], expected);
        assert_eq!(driver.sent.is_empty(), is_local);
    }
}

/// A write processed a second after its earliest possible receipt is dropped if its local client has
/// disconnected: the kernel may have resent it on another connection, followed by newer writes.
#[test]
fn late_write_of_a_disconnected_local_client_is_dropped() {
    let second_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    for (waited_in_buffer, is_disconnected) in [(true, true), (true, false), (false, true), (false, false)] {
        let client = Client { is_local: true, ..Client::default() };
        let mut driver = Driver::of_client(limits(), TlsMode::Off, client);
        let (ours, theirs) = UnixStream::pair().unwrap();
        driver.connection.register_local_socket(&Arc::new(ours.into()));
        driver.run(&hello(&[(NBD_OPT_EXPORT_NAME, b"")]), &[1 << 20]);
        let write =
            Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 512, len_bytes: 100 };
        let flush = Request { command: NBD_CMD_FLUSH, offset_bytes: 0, len_bytes: 0, ..write };
        let mut input = Vec::new();
        if waited_in_buffer {
            driver.now = second_ago;
            (0..MAX_JOBS).for_each(|_| input.extend(flush.encode()));
        }
        input.extend(write.encode());
        input.extend([99; 100]);
        driver.previous_wait_at = second_ago;
        if is_disconnected && !waited_in_buffer {
            theirs.shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
        if is_disconnected && waited_in_buffer {
            theirs.shutdown(Shutdown::Both).unwrap();
        }
        while driver.work_some(0) {}
        let is_written = driver.catalog.0.data.lock().unwrap()[512..612] == [99; 100];
        assert_eq!(
            (is_written, driver.connection.is_aborted()),
            (!is_disconnected, is_disconnected),
            "{waited_in_buffer}"
        );
    }
}

#[test]
fn receive_after_a_large_write_is_one_header() {
    let mut driver = Driver::attached(limits());
    let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 300_000 };
    driver.run(&[&write.encode()[..], &vec![1; 300_000]].concat(), &[1 << 20]);
    let transfer = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(transfer.range.len(), REQUEST_LEN_BYTES);
    driver.with_context(|connection, cx| {
        let mut buffer = transfer.buffer;
        buffer.framed_mut()[transfer.range].copy_from_slice(&write.encode());
        connection.end_receive(buffer, Ok(REQUEST_LEN_BYTES), cx);
    });
    let payload = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(payload.range.len(), 300_000, "the payload is received into its own buffer");
}

#[test]
fn disconnecting_client_gets_every_reply() {
    let mut driver = Driver::attached(limits());
    let disconnect =
        Request { flags: 0, command: NBD_CMD_DISC, cookie: 9, offset_bytes: 0, len_bytes: 0 }.encode();
    let requests =
        [read_request(1, 200_000), read_request(2, 200_000), read_request(3, 10), disconnect].concat();
    assert_eq!(driver.receive_some(&requests, usize::MAX), Some(requests.len()));
    while !driver.connection.is_finished() {
        assert!(driver.send_some(70_000) || driver.work_some(0), "no progress");
    }
    assert_eq!(driver.sent.len(), 3 * SIMPLE_REPLY_LEN_BYTES + 400_010);
}

#[test]
fn negotiation_reply_precedes_requests() {
    let mut driver = Driver::new();
    assert!(driver.send_some(usize::MAX), "the greeting");
    let mut input = hello(&[(NBD_OPT_EXPORT_NAME, b"")]);
    // A large read has its own buffer, which is sent before small replies.
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
fn aborted_connection_executes_no_request() {
    let zeroes =
        Request { flags: 0, command: NBD_CMD_WRITE_ZEROES, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    let mut driver = Driver::attached(limits());
    let before = driver.catalog.0.data.lock().unwrap().clone();
    driver.receive_some(&zeroes.encode(), usize::MAX);
    driver.with_context(|connection, cx| connection.abort("requested by the test", cx));
    assert!(driver.work_some(0), "the job is queued");
    assert!(*driver.catalog.0.data.lock().unwrap() == before);
    assert!(driver.connection.is_finished());
}

#[test]
fn block_status_with_payload_accepts_growth() {
    let mut driver = Driver::attached_in(ReplyMode::Extended, limits());
    driver.catalog.0.data.lock().unwrap().extend([0; 40_000]);
    let offset_bytes = DEVICE_BYTES as u64 - 20_000;
    let flags = NBD_CMD_FLAG_PAYLOAD_LEN;
    let request = Request { flags, command: NBD_CMD_BLOCK_STATUS, cookie: 1, offset_bytes, len_bytes: 12 };
    let input = [&request.encode_extended()[..], &60_000_u64.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    driver.run(&input, &[1 << 20]);
    let reply = chunks(&driver.sent, true, &BTreeMap::new());
    assert_eq!(reply[&1].0, 0, "no error");
}

#[test]
fn oversized_context_selection_clears_the_previous() {
    let mut driver = Driver::new();
    let options: [(u32, &[u8]); 4] = [
        (NBD_OPT_STRUCTURED_REPLY, b""),
        (NBD_OPT_SET_META_CONTEXT, &meta_request(b"", &[BASE_ALLOCATION])),
        (NBD_OPT_SET_META_CONTEXT, &[0; 70_000]),
        (NBD_OPT_EXPORT_NAME, b""),
    ];
    driver.run(&hello(&options), &[1 << 20]);
    driver.sent.clear();
    let status =
        Request { flags: 0, command: NBD_CMD_BLOCK_STATUS, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    driver.run(&status.encode(), &[1 << 20]);
    assert_eq!(chunks(&driver.sent, false, &BTreeMap::new())[&1].0, NBD_EINVAL);
}

#[test]
fn long_export_list_is_sent_in_pages() {
    let mut driver = Driver::new();
    let hello = hello(&[(NBD_OPT_LIST, b"")]);
    assert!(driver.send_some(usize::MAX), "the greeting");
    driver.sent.clear();
    assert_eq!(driver.receive_some(&hello, usize::MAX), Some(hello.len()));
    let mut parts = 0;
    while driver.work_some(0) {
        assert!(driver.work.is_empty(), "the next lookup waits for the send");
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
    assert!(names.into_iter().eq((0..EXPORT_COUNT).map(|number| format!("export {number}"))));
    assert!(driver.connection.start_receive(driver.now).is_some(), "the next option is accepted");
}
