//! Complete connections of a fuzzed client.

use std::sync::Arc;
use std::time::Duration;

use super::device::{Exports, SIZE_BYTES};
use super::driver::Driver;
use super::negotiation::{
    self, EXTENDED_HEADERS, GO, Next, SET_META, STRUCTURED_REPLY, go_data, meta_data, put_option,
};
use super::plan::{End, Plan};
use super::replies;
use super::requests;
use crate::connection::{ConnectionLimits, TlsOffer};
use crate::device::Client;
use crate::protocol::constants::{
    NBD_OPT_ABORT, NBD_OPT_STARTTLS, NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_TLS_REQD,
};
use crate::protocol::handshake::{Handshake, Step};
use crate::protocol::reply::ReplyMode;
use crate::protocol::tls_option::TlsStage;

/// Small enough to be reached by inputs.
const IN_FLIGHT_BYTES: u64 = 256 << 10;
/// Maximum charge of a request: the whole device and overhead, or a block status.
const MAX_CHARGE_BYTES: u64 = SIZE_BYTES as u64 + 4096;
const LIMITS: ConnectionLimits = ConnectionLimits {
    handshake_timeout: Duration::from_secs(10),
    drain_timeout: Duration::from_secs(30),
    stalled_send_timeout: Duration::from_secs(60),
    stalled_receive_timeout: Duration::from_secs(10),
    in_flight_bytes: IN_FLIGHT_BYTES,
    idle_timeout: None,
};

/// Runs a client with an arbitrary negotiation and its continuation.
///
/// # Panics
/// If a property is violated.
pub fn handshake(data: &[u8]) {
    let Some(plan) = Plan::of(data) else {
        return;
    };
    let stream = if plan.choice & 1 == 0 { plan.rest.to_vec() } else { negotiation::compose(plan.rest) };
    match plan.choice >> 6 {
        0 => negotiate(&stream, &plan.steps, TlsStage::Required),
        1 => negotiate(&stream, &plan.steps, TlsStage::Offered),
        _ => converse(stream, &plan),
    }
}

/// Runs a client after the negotiation.
///
/// # Panics
/// If a property is violated.
pub fn transmission(data: &[u8]) {
    let Some(plan) = Plan::of(data) else {
        return;
    };
    let mode = match plan.choice % 4 {
        0 => ReplyMode::Simple,
        1 => ReplyMode::Structured,
        _ => ReplyMode::Extended,
    };
    let name = if plan.choice & 4 == 0 { "a" } else { "ro" };
    let queries = ["qemu:dirty-bitmap:odd", "base:allocation", "qemu:dirty-bitmap:none"];
    let queries = &queries[..usize::from(plan.choice >> 4 & 3)];
    let mut stream = 3_u32.to_be_bytes().to_vec();
    match mode {
        ReplyMode::Simple => {}
        ReplyMode::Structured => put_option(&mut stream, STRUCTURED_REPLY, &[]),
        ReplyMode::Extended => put_option(&mut stream, EXTENDED_HEADERS, &[]),
    }
    if mode != ReplyMode::Simple {
        put_option(&mut stream, SET_META, &meta_data(name, queries));
    }
    put_option(&mut stream, GO, &go_data(name, &[]));
    if plan.choice & 8 == 0 {
        stream.extend(requests::compose(plan.rest, mode));
    } else {
        stream.extend(plan.rest);
    }
    converse(stream, &plan);
}

/// Checks that memory is bounded by the charges, and these by the limit.
fn assert_bounded(driver: &Driver<Exports>) {
    let charged = driver.budget.used_bytes();
    assert!(charged <= IN_FLIGHT_BYTES.max(MAX_CHARGE_BYTES), "{charged} bytes are in flight");
    let held = driver.connection.held_bytes() as u64;
    assert!(held <= 2 * charged + (512 << 10), "replies take {held} bytes, {charged} are charged");
}

/// Runs a connection from greeting to end.
fn converse(mut stream: Vec<u8>, plan: &Plan<'_>) {
    let negotiation = negotiation::read(&stream);
    let mut asked = Vec::new();
    if let Next::Transmission { at, terms } = &negotiation.next {
        let mut tail = stream.split_off(*at);
        asked = requests::number_requests(&mut tail, terms);
        stream.extend(tail);
    }
    let mut driver = Driver::over(Exports::new(), LIMITS, TlsOffer::Off, Client::default());
    let whole = plan.end == End::Closed;
    if whole {
        driver.run_checked(&stream, &plan.steps, assert_bounded);
    } else {
        let (first, mut rest) = stream.split_at(stream.len() / 2);
        driver.run_checked(first, &plan.steps, assert_bounded);
        // Replies accumulate.
        while !rest.is_empty()
            && let Some(len) = driver.receive_some(rest, plan.steps[0])
        {
            rest = &rest[len..];
            assert_bounded(&driver);
        }
        driver.work_some(plan.steps[0]);
    }
    let ended = match plan.end {
        End::Closed => false,
        End::ReceiveFails => driver.fail_receive(),
        End::SendFails => driver.fail_send(),
        End::Aborted => {
            driver.tell(|connection, cx| connection.abort("the input is over", cx));
            true
        }
    };
    while !driver.connection.is_finished() {
        let progress =
            driver.send_some(plan.steps[0]) || driver.work_some(0) || driver.receive_some(&[], 0).is_some();
        assert!(progress, "stuck at the end; ended: {ended}");
    }

    let sent = &driver.sent;
    match (negotiation.check(sent), &negotiation.next) {
        (Some(len), Next::Transmission { terms, .. }) => {
            let device = if terms.read_only { &driver.catalog.read_only } else { &driver.catalog.writable };
            replies::check(&sent[len..], &asked, terms, &device.log(), whole);
        }
        (Some(len), Next::Nothing) => assert_eq!(sent.len(), len, "nothing more was asked for"),
        (None, _) => assert!(!whole, "the negotiation is cut short"),
    }

    driver.connection.release(&mut driver.pool, &driver.budget);
    assert_eq!(driver.budget.used_bytes(), 0, "bytes are left charged");
    assert_eq!(Arc::strong_count(&driver.catalog.writable), 1);
    assert_eq!(Arc::strong_count(&driver.catalog.read_only), 1);
}

/// Runs a negotiation with TLS, assumed to start at once: until then nothing is served where it is required.
fn negotiate(stream: &[u8], steps: &[usize], tls: TlsStage) {
    let (catalog, client) = (Exports::new(), Client::default());
    let mut handshake = Handshake::with_tls(tls);
    let (mut start, mut end, mut turn) = (0, 0, 0);
    let mut secured = false;
    loop {
        let mut out = Vec::new();
        let (consumed, mut step) = handshake.feed(&stream[start..end], &mut out);
        assert!(consumed <= end - start);
        start += consumed;
        if let Step::Lookup(lookup) = step {
            assert!(secured || tls != TlsStage::Required, "an export is looked up in clear");
            step = handshake.answer(lookup.resolve(&catalog, &client), &mut out);
        }
        assert!(out.len() <= 64 << 10, "{} bytes in answer to one option", out.len());
        if !secured && tls == TlsStage::Required {
            assert_refuses(&out);
        }
        match step {
            Step::NeedInput if end == stream.len() => return,
            Step::NeedInput => {
                end = (end + steps[turn % steps.len()]).min(stream.len());
                turn += 1;
            }
            Step::Continue => {}
            Step::StartTls => {
                assert!(!secured, "TLS within TLS");
                handshake.secured();
                secured = true;
            }
            Step::Transmit(..) => {
                assert!(secured || tls != TlsStage::Required, "transmission in clear");
                return;
            }
            Step::Close(_) => return,
            Step::Lookup(_) => panic!("two questions for one option"),
        }
    }
}

/// Checks plaintext replies where TLS is required.
fn assert_refuses(out: &[u8]) {
    if out.is_empty() {
        return;
    }
    let number = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
    let (option, kind) = (number(8), number(12));
    let allowed = match option {
        NBD_OPT_ABORT | NBD_OPT_STARTTLS => vec![NBD_REP_ACK, NBD_REP_ERR_INVALID],
        _ => vec![NBD_REP_ERR_TLS_REQD],
    };
    // An oversized option is not parsed.
    let too_big = (1 << 31) + 9;
    assert!(allowed.contains(&kind) || kind == too_big, "{kind:#x} in answer to option {option} in clear");
}
