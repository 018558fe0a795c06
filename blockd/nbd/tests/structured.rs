//! Structured replies, extended headers and metadata contexts over a socket.
use std::sync::atomic::Ordering;

use crate::common::*;
use blockd_nbd::DeviceErrorKind;
use blockd_nbd::constants::*;

const MIB: usize = 1 << 20;
const BOTH: [ReplyMode; 2] = [ReplyMode::Structured, ReplyMode::Extended];

/// Chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    done: bool,
    chunk_type: u16,
    cookie: u64,
    payload: Vec<u8>,
}

/// Client with structured replies or extended headers.
struct Structured {
    client: Client,
    mode: ReplyMode,
    next_cookie: u64,
}

impl Structured {
    /// Returns a client in transmission with selected contexts, and the contexts with their ids.
    fn attach(server: &TestServer, mode: ReplyMode, queries: &[&str]) -> (Self, Vec<(u32, String)>) {
        let mut client = server.connect();
        client.hello(3);
        let option = match mode {
            ReplyMode::Extended => NBD_OPT_EXTENDED_HEADERS,
            _ => NBD_OPT_STRUCTURED_REPLY,
        };
        assert_eq!(client.option(option, b""), [(NBD_REP_ACK, Vec::new())]);
        let mut contexts = Vec::new();
        if !queries.is_empty() {
            let replies = client.option(NBD_OPT_SET_META_CONTEXT, &meta_request(b"vol", queries));
            contexts = context_replies(&replies);
        }
        let replies = client.option(NBD_OPT_GO, &info_request(b"vol", &[]));
        assert_eq!(replies.last().unwrap().0, NBD_REP_ACK);
        (Self { client, mode, next_cookie: 1 }, contexts)
    }

    fn send(&mut self, command: u16, flags: u16, offset_bytes: u64, len_bytes: u64, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut request = Request { flags, command, cookie, offset_bytes, len_bytes };
        if self.mode == ReplyMode::Extended {
            if !payload.is_empty() {
                request.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
            }
            self.client.send(&request.encode_extended());
        } else {
            self.client.send(&request.encode());
        }
        self.client.send(payload);
        cookie
    }

    fn chunk(&mut self, offset_bytes: u64) -> Chunk {
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let magic = number(&self.client.receive(4)) as u32;
        if magic == SIMPLE_REPLY_MAGIC {
            assert_eq!(self.mode, ReplyMode::Structured, "a simple reply with extended headers");
            let rest = self.client.receive(12);
            assert_eq!(number(&rest[..4]), 0, "a simple error with structured replies");
            return Chunk { done: true, chunk_type: 0, cookie: number(&rest[4..]), payload: Vec::new() };
        }
        let rest = self.client.receive(12);
        let len = if self.mode == ReplyMode::Extended {
            assert_eq!(magic, EXTENDED_REPLY_MAGIC);
            assert_eq!(number(&self.client.receive(8)), offset_bytes, "the request's offset");
            number(&self.client.receive(8))
        } else {
            assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
            number(&self.client.receive(4))
        };
        Chunk {
            done: number(&rest[0..2]) == 1,
            chunk_type: number(&rest[2..4]) as u16,
            cookie: number(&rest[4..12]),
            payload: self.client.receive(len as usize),
        }
    }

    /// Sends a request; returns all chunks of its reply.
    fn run(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        len_bytes: u64,
        payload: &[u8],
    ) -> Vec<Chunk> {
        let cookie = self.send(command, flags, offset_bytes, len_bytes, payload);
        let mut chunks = Vec::new();
        loop {
            let chunk = self.chunk(offset_bytes);
            assert_eq!(chunk.cookie, cookie);
            let done = chunk.done;
            chunks.push(chunk);
            if done {
                return chunks;
            }
        }
    }

    fn write(&mut self, offset_bytes: u64, data: &[u8]) -> u32 {
        errno(&self.run(NBD_CMD_WRITE, 0, offset_bytes, data.len() as u64, data))
    }

    fn command(&mut self, command: u16, flags: u16, offset_bytes: u64, len_bytes: u64) -> u32 {
        errno(&self.run(command, flags, offset_bytes, len_bytes, b""))
    }

    /// Returns the assembled data of a read, and the number of bytes sent as holes.
    fn read(&mut self, flags: u16, offset_bytes: u64, len_bytes: u64) -> (Vec<u8>, usize) {
        let chunks = self.run(NBD_CMD_READ, flags, offset_bytes, len_bytes, b"");
        assert!(flags & NBD_CMD_FLAG_DF == 0 || chunks.len() == 1, "one chunk with DF");
        let mut data = vec![0xdd; len_bytes as usize];
        let (mut covered, mut holes) = (0, 0);
        for chunk in chunks {
            let at = (u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) - offset_bytes) as usize;
            let body = &chunk.payload[8..];
            let len = match chunk.chunk_type {
                NBD_REPLY_TYPE_OFFSET_DATA => {
                    data[at..at + body.len()].copy_from_slice(body);
                    body.len()
                }
                NBD_REPLY_TYPE_OFFSET_HOLE => {
                    let len = u32::from_be_bytes(body.try_into().unwrap()) as usize;
                    data[at..at + len].fill(0);
                    holes += len;
                    len
                }
                other => panic!("chunk of type {other}"),
            };
            covered += len;
        }
        assert_eq!(covered, len_bytes as usize, "chunks cover each byte once");
        (data, holes)
    }

    /// Queries the block status; returns the extents by context.
    fn status(
        &mut self,
        flags: u16,
        offset_bytes: u64,
        len_bytes: u64,
        payload: &[u8],
    ) -> Vec<(u32, Vec<(u64, u64)>)> {
        let chunks = self.run(NBD_CMD_BLOCK_STATUS, flags, offset_bytes, len_bytes, payload);
        let extended = self.mode == ReplyMode::Extended;
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let parse = |chunk: &Chunk| {
            let context = number(&chunk.payload[..4]) as u32;
            let (head, width) = if extended { (8, 8) } else { (4, 4) };
            let expected =
                if extended { NBD_REPLY_TYPE_BLOCK_STATUS_EXT } else { NBD_REPLY_TYPE_BLOCK_STATUS };
            assert_eq!(chunk.chunk_type, expected);
            let extents: Vec<_> = chunk.payload[head..]
                .chunks(2 * width)
                .map(|pair| (number(&pair[..width]), number(&pair[width..])))
                .collect();
            assert!(!extended || number(&chunk.payload[4..8]) == extents.len() as u64);
            (context, extents)
        };
        chunks.iter().map(parse).collect()
    }
}

/// Returns the error number of a reply, 0 for success.
fn errno(chunks: &[Chunk]) -> u32 {
    let last = chunks.last().unwrap();
    if last.chunk_type == NBD_REPLY_TYPE_ERROR {
        let message_len = u16::from_be_bytes(last.payload[4..6].try_into().unwrap()) as usize;
        assert!(message_len > 0 && last.payload.len() == 6 + message_len, "an error has a message");
        return u32::from_be_bytes(last.payload[..4].try_into().unwrap());
    }
    assert_eq!(last.chunk_type, NBD_REPLY_TYPE_NONE);
    0
}

fn context_replies(replies: &[OptionReply]) -> Vec<(u32, String)> {
    assert_eq!(replies.last().unwrap().0, NBD_REP_ACK, "{replies:?}");
    let contexts = replies[..replies.len() - 1].iter().map(|(reply_type, data)| {
        assert_eq!(*reply_type, NBD_REP_META_CONTEXT);
        let id = u32::from_be_bytes(data[..4].try_into().unwrap());
        (id, String::from_utf8(data[4..].to_vec()).unwrap())
    });
    contexts.collect()
}

#[test]
fn structured_commands_succeed_on_any_thread() {
    for (mode, behaviour) in BOTH.into_iter().flat_map(|mode| {
        [Behaviour::Instant, Behaviour::Blocking, Behaviour::Mixed].map(|behaviour| (mode, behaviour))
    }) {
        let server = TestServer::start(MemDevice::new(8 * MIB, behaviour));
        let (mut client, _) = Structured::attach(&server, mode, &[]);
        let mut expected = vec![0; 8 * MIB];
        for (offset, len) in [(100, 50), (8192, 4096), (70_001, 40_000), (2 * MIB, 700_000), (7 * MIB, MIB)] {
            let data = pattern(offset as u64, len);
            assert_eq!(client.write(offset as u64, &data), 0);
            expected[offset..offset + len].copy_from_slice(&data);
        }
        for (offset, len) in [
            (0, 1),
            (100, 50),
            (0, 4096),
            (4096, 4096),
            (60_000, 60_000),
            (3, 200_000),
            (MIB, MIB),
            (MIB + 1, 3 * MIB),
            (5000, 8 * MIB - 5001),
            (0, 8 * MIB),
        ] {
            for flags in [0, NBD_CMD_FLAG_DF] {
                let (data, holes) = client.read(flags, offset as u64, len as u64);
                assert!(data == expected[offset..offset + len], "{mode:?} {behaviour:?} {offset} {len}");
                let all_zero = data.iter().all(|byte| *byte == 0);
                assert!(
                    !all_zero || holes == len,
                    "{mode:?} {behaviour:?} {offset} {len}: zeroes were sent as data"
                );
            }
        }
        let holes = client.read(0, 0, 8 * MIB as u64).1;
        assert!(holes > 5 * MIB, "only {holes} bytes were sent as holes");
        assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), 0);
        assert_eq!(client.command(NBD_CMD_TRIM, 0, 0, 4096), 0);
        assert_eq!(client.command(NBD_CMD_CACHE, 0, 4096, 8192), 0);
        assert_eq!(server.device.cached_bytes.load(Ordering::SeqCst), 8192);
        let fast = NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_NO_HOLE;
        assert_eq!(client.command(NBD_CMD_WRITE_ZEROES, fast, 8192, 4096), 0);
        assert_eq!(server.device.fast_zeroes.load(Ordering::SeqCst), 1);
        assert_eq!(client.command(NBD_CMD_WRITE_ZEROES, fast, 1, 4096), NBD_ENOTSUP);
        assert_eq!(client.read(0, 8192, 4096).0, vec![0; 4096]);
        expected[8192..12288].fill(0);
        // Requests of length 0, and invalid requests.
        assert_eq!(client.command(NBD_CMD_READ, 0, 5, 0), 0);
        assert_eq!(client.command(NBD_CMD_READ, 0, 8 * MIB as u64, 1), NBD_EINVAL);
        assert_eq!(client.command(NBD_CMD_READ, 0, 0, u64::from(MAX_PAYLOAD_BYTES) + 1), NBD_EINVAL);
        assert_eq!(client.command(NBD_CMD_BLOCK_STATUS, 0, 0, 4096), NBD_EINVAL, "no contexts");
        assert_eq!(client.write(8 * MIB as u64, &[1; 100]), NBD_ENOSPC);
        server.device.misaligned.store(false, Ordering::SeqCst);
        assert!(client.read(0, 4096, 8 * MIB as u64 - 4096).0 == expected[4096..]);
        assert!(!server.device.misaligned.load(Ordering::SeqCst), "buffers of an aligned read are aligned");
    }
}

#[test]
fn device_failure_has_errno_and_message() {
    for (mode, later) in BOTH.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        for (kind, expected) in [(DeviceErrorKind::Io, NBD_EIO), (DeviceErrorKind::NoSpace, NBD_ENOSPC)] {
            let behaviour = if later { Behaviour::FailingOnWorker(kind) } else { Behaviour::Failing(kind) };
            let server = TestServer::start(MemDevice::new(MIB, behaviour));
            let (mut client, _) = Structured::attach(&server, mode, &["base:allocation"]);
            for len in [1, 5000, 50_000, 300_000] {
                assert_eq!(client.command(NBD_CMD_READ, 0, 0, len), expected);
                assert_eq!(client.write(0, &vec![1; len as usize]), expected);
            }
            assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), expected);
            assert_eq!(client.command(NBD_CMD_CACHE, 0, 0, 1), expected);
            assert_eq!(client.command(NBD_CMD_BLOCK_STATUS, 0, 0, 1), expected);
        }
    }
}

#[test]
fn selected_contexts_are_reported() {
    let server = TestServer::instant(MIB);
    let mut client = server.connect();
    client.hello(3);
    let all = meta_request(b"vol", &[]);
    for option in [NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
        assert_eq!(client.option(option, &all)[0].0, NBD_REP_ERR_INVALID, "structured replies are required");
    }
    assert_eq!(client.option(NBD_OPT_STRUCTURED_REPLY, b"x")[0].0, NBD_REP_ERR_INVALID);
    assert_eq!(client.option(NBD_OPT_STRUCTURED_REPLY, b"")[0].0, NBD_REP_ACK);
    let names = |client: &mut Client, queries: &[&str]| -> Vec<String> {
        let replies = client.option(NBD_OPT_LIST_META_CONTEXT, &meta_request(b"vol", queries));
        context_replies(&replies).into_iter().map(|(_, name)| name).collect()
    };
    assert_eq!(names(&mut client, &[]), ["base:allocation", "qemu:dirty-bitmap:7"]);
    assert_eq!(names(&mut client, &["qemu:dirty-bitmap:"]), ["qemu:dirty-bitmap:7"]);
    assert_eq!(names(&mut client, &["base:", "no:such"]), ["base:allocation"]);
    let unknown = client.option(NBD_OPT_LIST_META_CONTEXT, &meta_request(b"nope", &[]));
    assert_eq!(unknown[0].0, NBD_REP_ERR_UNKNOWN);
    // A selection applies to its export name only; the empty name is another name.
    let set = client.option(NBD_OPT_SET_META_CONTEXT, &meta_request(b"", &["base:allocation"]));
    assert_eq!(context_replies(&set).len(), 1);
    let replies = client.option(NBD_OPT_GO, &info_request(b"vol", &[]));
    assert_eq!(replies.last().unwrap().0, NBD_REP_ACK);
    let mut client = Structured { client, mode: ReplyMode::Structured, next_cookie: 1 };
    assert_eq!(client.command(NBD_CMD_BLOCK_STATUS, 0, 0, 4096), NBD_EINVAL);

    for mode in BOTH {
        let queries = ["qemu:dirty-bitmap:7", "base:allocation", "no:such"];
        let (mut client, contexts) = Structured::attach(&server, mode, &queries);
        let [(base, base_name), (dirty, dirty_name)] = &contexts[..] else { panic!("{contexts:?}") };
        assert_eq!((base_name.as_str(), dirty_name.as_str()), ("base:allocation", "qemu:dirty-bitmap:7"));
        assert_eq!(client.write(8192, &[1; 4096]), 0);
        let status = client.status(0, 4096, 16384, b"");
        assert_eq!(status[0], (*base, vec![(4096, 3), (4096, 0), (8192, 3)]));
        assert_eq!(status[1], (*dirty, vec![(8192, 0), (4096, 1), (4096, 0)]));
        let one = client.status(NBD_CMD_FLAG_REQ_ONE, 4096, 16384, b"");
        assert_eq!(one, [(*base, vec![(4096, 3)]), (*dirty, vec![(8192, 0)])]);
        let odd = client.status(0, 8000, 300, b"");
        assert_eq!(odd[0].1, [(192, 3), (108, 0)]);
        assert_eq!(client.command(NBD_CMD_BLOCK_STATUS, 0, MIB as u64 - 1, 2), NBD_EINVAL);
        assert_eq!(client.command(NBD_CMD_BLOCK_STATUS, 0, 0, 0), NBD_EINVAL);
        assert_eq!(client.write(8192, &[0; 4096]), 0);
    }
}

#[test]
fn extended_client_selects_contexts() {
    let server = TestServer::instant(MIB);
    let queries = ["qemu:dirty-bitmap:7", "base:allocation"];
    let (mut client, contexts) = Structured::attach(&server, ReplyMode::Extended, &queries);
    let dirty = contexts[1].0;
    let payload = |len_bytes: u64, ids: &[u32]| {
        let mut payload = len_bytes.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload
    };
    let some = payload(8192, &[dirty, dirty]);
    assert_eq!(client.status(0, 0, some.len() as u64, &some), [(dirty, vec![(4096, 1), (4096, 0)])]);
    let mut longer = payload(4096, &[dirty]);
    longer.push(0);
    for wrong in
        [payload(4096, &[]), payload(4096, &[99]), payload(0, &[dirty]), payload(2 << 20, &[dirty]), longer]
    {
        let reply = client.run(NBD_CMD_BLOCK_STATUS, 0, 0, wrong.len() as u64, &wrong);
        assert_eq!(errno(&reply), NBD_EINVAL, "{wrong:?}");
    }
    // An unexpected payload is discarded, and the next request is parsed.
    let reply = client.run(NBD_CMD_READ, 0, 0, 5000, &[7; 5000]);
    assert_eq!(errno(&reply), NBD_EINVAL);
    assert_eq!(client.read(0, 0, 100).0, [0; 100]);
}
