//! Independent check of replies in the transmission phase, from the protocol document.

use std::collections::HashMap;

use blockd_nbd::constants::*;

use super::device::{Change, first_content, flags_of};
use super::requests::{Asked, Bytes, ReplyMode, Terms};

/// Reply to a request.
#[derive(Default)]
struct Reply {
    is_over: bool,
    errno: Option<u32>,
    /// Data of a read by offset; zeroes for a hole.
    data: Vec<(u64, Vec<u8>)>,
    /// Extents of a block status by context id.
    statuses: Vec<(u32, Vec<(u64, u64)>)>,
    chunks: usize,
}

/// Checks the bytes of a server. With `complete`, no reply may be missing.
pub(super) fn check(sent: &[u8], asked: &[Asked], terms: &Terms, changes: &[Change], complete: bool) {
    let mut replies: Vec<Reply> = asked.iter().map(|_| Reply::default()).collect();
    let mut bytes = Bytes(sent);
    while !bytes.0.is_empty() {
        if next_reply(&mut bytes, asked, terms, &mut replies).is_none() {
            assert!(!complete, "incomplete reply");
            break;
        }
    }
    for (request, reply) in asked.iter().zip(&replies) {
        assert!(reply.is_over || !complete, "no reply to {request:?}");
        if reply.is_over {
            check_form(request, reply);
        }
    }
    check_changes(asked, &replies, changes);
    check_content(asked, &replies, terms, changes);
}

fn next_reply(bytes: &mut Bytes<'_>, asked: &[Asked], terms: &Terms, replies: &mut [Reply]) -> Option<()> {
    let magic = bytes.number(4)?;
    if magic == 0x6744_6698 {
        let (errno, cookie) = (bytes.number(4)? as u32, bytes.number(8)? as usize);
        let request = asked.get(cookie).expect("the cookie of a request");
        let reply = &mut replies[cookie];
        assert!(!reply.is_over && reply.chunks == 0, "two replies to {request:?}");
        let is_data = [NBD_CMD_READ, NBD_CMD_BLOCK_STATUS].contains(&request.command);
        match terms.mode {
            ReplyMode::Simple => {}
            ReplyMode::Structured => assert!(errno == 0 && !is_data, "a simple reply to {request:?}"),
            ReplyMode::Extended => panic!("a simple reply with extended headers"),
        }
        if errno != 0 {
            reply.errno = Some(errno);
        } else if request.command == NBD_CMD_READ && request.len_bytes > 0 {
            reply.data.push((request.offset_bytes, bytes.take(request.len_bytes as usize)?.to_vec()));
        }
        reply.is_over = true;
        return Some(());
    }
    let extended = terms.mode == ReplyMode::Extended;
    assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef }, "the magic of a reply");
    assert!(terms.mode != ReplyMode::Simple, "a structured reply without negotiation");
    let (flags, kind, cookie) = (bytes.number(2)?, bytes.number(2)?, bytes.number(8)? as usize);
    let offset_bytes = if extended { Some(bytes.number(8)?) } else { None };
    let len = bytes.number(if extended { 8 } else { 4 })?;
    let payload = Bytes(bytes.take(usize::try_from(len).expect("a length"))?);
    let request = asked.get(cookie).expect("the cookie of a request");
    let reply = &mut replies[cookie];
    assert!(!reply.is_over, "a chunk after the last one of {request:?}");
    assert!(
        offset_bytes.is_none_or(|offset| offset == request.offset_bytes),
        "the reply has the offset of its request"
    );
    assert!(flags <= 1, "the flags of a chunk");
    reply.chunks += 1;
    reply.is_over = flags == 1;
    take_chunk(kind, payload, request, reply, extended);
    if kind == 0 {
        assert!(flags == 1, "a chunk without payload is the last one");
    }
    Some(())
}

/// Takes the payload of a chunk, which is complete.
fn take_chunk(kind: u64, mut payload: Bytes<'_>, request: &Asked, reply: &mut Reply, extended: bool) {
    match kind {
        0 => assert!(payload.0.is_empty(), "a payload of a chunk without one"),
        1 => {
            let at = payload.number(8).expect("an offset");
            assert!(request.command == NBD_CMD_READ && !payload.0.is_empty(), "data for {request:?}");
            reply.data.push((at, payload.0.to_vec()));
        }
        2 => {
            let (at, hole) = (payload.number(8).expect("an offset"), payload.number(4).expect("a length"));
            assert!(
                request.command == NBD_CMD_READ && hole > 0 && payload.0.is_empty(),
                "a hole for {request:?}"
            );
            assert!(hole <= request.len_bytes);
            reply.data.push((at, vec![0; hole as usize]));
        }
        5 | 6 => {
            assert!(
                request.command == NBD_CMD_BLOCK_STATUS && extended == (kind == 6),
                "status for {request:?}"
            );
            let id = payload.number(4).expect("an id") as u32;
            let width = if extended { 8 } else { 4 };
            let count = if extended { Some(payload.number(4).expect("a number")) } else { None };
            assert!(payload.0.len().is_multiple_of(2 * width));
            let mut extents = Vec::new();
            while let (Some(len), Some(flags)) = (payload.number(width), payload.number(width)) {
                extents.push((len, flags));
            }
            assert!(count.is_none_or(|count| count == extents.len() as u64), "the number of extents");
            reply.statuses.push((id, extents));
        }
        0x8001 => {
            let errno = payload.number(4).expect("an error") as u32;
            let len = payload.number(2).expect("a length") as usize;
            assert!(errno != 0 && payload.0.len() == len && std::str::from_utf8(payload.0).is_ok());
            assert!(reply.errno.replace(errno).is_none(), "two errors for {request:?}");
        }
        _ => panic!("a chunk of type {kind:#x}"),
    }
}

/// Checks that a reply is allowed for its request, apart from its content.
fn check_form(request: &Asked, reply: &Reply) {
    if let Some(errno) = reply.errno {
        assert!(request.errors.contains(&errno), "error {errno} for {request:?}");
        return;
    }
    assert!(request.may_succeed, "success for {request:?}");
    if request.command == NBD_CMD_READ {
        let mut next = request.offset_bytes;
        for (at, data) in &reply.data {
            assert_eq!(*at, next, "the data is ordered and complete: {request:?}");
            next += data.len() as u64;
        }
        assert_eq!(next, request.offset_bytes + request.len_bytes, "{request:?}");
        assert!(
            request.flags & NBD_CMD_FLAG_DF == 0 || reply.data.len() <= 1,
            "{request:?} has several chunks"
        );
    }
    if request.command == NBD_CMD_BLOCK_STATUS {
        let mut ids: Vec<u32> = reply.statuses.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let mut wanted = request.contexts.clone();
        wanted.sort_unstable();
        assert_eq!(ids, wanted, "{request:?}");
        let count: usize = reply.statuses.iter().map(|(_, extents)| extents.len()).sum();
        assert!(count <= MAX_STATUS_EXTENTS.max(ids.len()));
        for (_, extents) in &reply.statuses {
            let covered: u64 = extents.iter().map(|(len, _)| len).sum();
            assert!(!extents.is_empty() && extents.iter().all(|(len, _)| *len > 0));
            assert!(covered <= request.len_bytes, "beyond {request:?}");
            let is_one = request.flags & NBD_CMD_FLAG_REQ_ONE != 0;
            assert!(if is_one { extents.len() == 1 } else { covered == request.len_bytes }, "{request:?}");
        }
    }
}

/// Checks that the changes of the device are exactly the requested ones.
fn check_changes(asked: &[Asked], replies: &[Reply], changes: &[Change]) {
    let mut counts: HashMap<&Change, [usize; 3]> = HashMap::new();
    for change in changes {
        counts.entry(change).or_default()[0] += 1;
    }
    for (request, reply) in asked.iter().zip(replies) {
        if let Some(change) = &request.change {
            let count = counts.entry(change).or_default();
            count[1] += usize::from(reply.is_over && reply.errno.is_none());
            count[2] += 1;
        }
    }
    for (change, [happened, acknowledged, asked]) in counts {
        let range = change.range();
        assert!(happened <= asked, "{range:?} changed {happened} times, {asked} were requested");
        assert!(
            acknowledged <= happened,
            "{range:?} changed {happened} times, {acknowledged} were acknowledged"
        );
    }
}

/// Checks that reads returned content that the device held at some time.
fn check_content(asked: &[Asked], replies: &[Reply], terms: &Terms, changes: &[Change]) {
    let mut content = first_content();
    let mut pending: Vec<(&Asked, &Reply)> = asked
        .iter()
        .zip(replies)
        .filter(|(_, reply)| reply.is_over && reply.errno.is_none())
        .filter(|(_, reply)| !reply.data.is_empty() || !reply.statuses.is_empty())
        .collect();
    let matches = |(request, reply): (&Asked, &Reply), content: &[u8]| {
        let data = reply.data.iter().all(|(at, data)| content[*at as usize..].starts_with(data));
        let status = reply.statuses.iter().all(|(id, extents)| {
            let context = &terms.contexts[*id as usize - 1];
            is_status(context, request.offset_bytes, extents, content)
        });
        data && status
    };
    pending.retain(|pair| !matches(*pair, &content));
    for change in changes {
        change.apply(&mut content);
        let range = change.range();
        // Extents of a block status may reach to the end of a block.
        let touched = |request: &Asked| {
            let start = request.offset_bytes.saturating_sub(4096);
            let end = request.offset_bytes + request.len_bytes + 4096;
            (range.start as u64) < end && range.end as u64 > start
        };
        pending.retain(|pair| !touched(pair.0) || !matches(*pair, &content));
    }
    if let Some((request, _)) = pending.first() {
        panic!("the device never held the content read by {request:?}");
    }
}

/// Returns true if extents are the maximal ones of a content in a context.
fn is_status(context: &str, offset_bytes: u64, extents: &[(u64, u64)], content: &[u8]) -> bool {
    let mut at = offset_bytes as usize;
    let mut before = None;
    for (len, flags) in extents {
        let end = at + *len as usize;
        let mut blocks = at / 4096..end.div_ceil(4096);
        if before == Some(*flags)
            || !blocks.all(|block| u64::from(flags_of(context, content, block)) == *flags)
        {
            return false;
        }
        before = Some(*flags);
        at = end;
    }
    true
}
