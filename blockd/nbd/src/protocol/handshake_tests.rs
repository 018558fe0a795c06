//! Tests of the negotiation without sockets: replies are independent of receive boundaries, and no input
//! panics.

use std::sync::Arc;

use proptest::prelude::*;

use crate::device::Client;
use crate::protocol::constants::*;
use crate::protocol::handshake::{Handshake, Step};
use crate::protocol::tls_option::TlsStage;
use crate::test_device::{Behaviour, Catalog, MemDevice};
use crate::test_wire::{info_request, meta_request, option_request};

/// Feeds `input` in steps of `cuts`; returns the replies, the number of consumed bytes and the result.
fn negotiate(input: &[u8], mut cuts: impl FnMut() -> usize) -> (Vec<u8>, usize, String) {
    let device = MemDevice::new(4096, Behaviour::Instant);
    let catalog = Catalog(vec![("vol".to_owned(), Arc::new(device))]);
    let mut handshake = Handshake::with_tls(TlsStage::Unavailable);
    let (mut out, mut taken, mut seen) = (Vec::new(), 0, 0);
    loop {
        let (consumed, mut step) = handshake.feed(&input[taken..seen], &mut out);
        assert!(consumed <= seen - taken);
        taken += consumed;
        if let Step::Lookup(lookup) = step {
            step = handshake.resume(lookup.resolve(&catalog, &Client::default()), &mut out);
        }
        match step {
            Step::NeedInput if seen == input.len() => return (out, taken, "more".to_owned()),
            Step::NeedInput => {
                assert_eq!(consumed, 0);
                seen = (seen + cuts().max(1)).min(input.len());
            }
            Step::Continue => assert!(consumed > 0 || taken > 0),
            Step::Lookup(_) => panic!("a lookup result causes no further lookup"),
            Step::Transmit(opened, _) => return (out, taken, format!("transmit {}", opened.name)),
            Step::StartTls => panic!("TLS was not offered"),
            Step::Close(reason) => return (out, taken, reason.into_owned()),
        }
    }
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name =
        prop_oneof![Just(b"vol".to_vec()), Just(b"".to_vec()), Just(b"busy".to_vec()), any::<Vec<u8>>()];
    let option = prop_oneof![1 => Just(2_u32), 1 => any::<u32>(), 12 => 1_u32..13];
    let infos = proptest::collection::vec(0_u16..5, 0..4);
    (option, name, infos, any::<Option<Vec<u8>>>(), 0..30_usize).prop_map(
        |(option, name, infos, raw, long)| {
            let data = match option {
                _ if long == 0 => vec![0; 70_000],
                NBD_OPT_EXPORT_NAME => name,
                NBD_OPT_LIST | NBD_OPT_ABORT => Vec::new(),
                NBD_OPT_STRUCTURED_REPLY | NBD_OPT_EXTENDED_HEADERS => raw.unwrap_or_default(),
                NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => raw
                    .unwrap_or_else(|| meta_request(&name, &["base:allocation", "qemu:", ""][..infos.len()])),
                _ => raw.unwrap_or_else(|| info_request(&name, &infos)),
            };
            option_request(option, &data)
        },
    )
}

proptest! {
    #[test]
    fn result_is_independent_of_receive_boundaries(
        flags in prop_oneof![Just(3_u32), Just(1), Just(0), any::<u32>()],
        options in proptest::collection::vec(any_option(), 0..6),
        garbage in any::<Vec<u8>>(),
        cuts in proptest::collection::vec(1_usize..40, 1..50),
    ) {
        let mut input = flags.to_be_bytes().to_vec();
        input.extend(options.concat());
        input.extend(garbage);
        let whole = negotiate(&input, || usize::MAX / 2);
        let mut index = 0;
        let cut = negotiate(&input, || {
            index += 1;
            cuts[index % cuts.len()] * if input.len() > 60_000 { 1000 } else { 1 }
        });
        prop_assert!(whole == cut, "{:?} but cut {:?}", whole.2, cut.2);
    }

    #[test]
    fn options_before_required_tls_are_refused(
        options in proptest::collection::vec(any_option(), 0..6),
        cuts in proptest::collection::vec(1_usize..40, 1..50),
    ) {
        let input = [&3_u32.to_be_bytes()[..], &options.concat()].concat();
        let mut handshake = Handshake::with_tls(TlsStage::Required);
        let (mut taken, mut seen) = (0, 0);
        for cut in cuts.iter().cycle() {
            let mut out = Vec::new();
            let (consumed, step) = handshake.feed(&input[taken..seen], &mut out);
            taken += consumed;
            if !out.is_empty() {
                let number = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
                let is_allowed = match number(8) {
                    NBD_OPT_ABORT | NBD_OPT_STARTTLS => [NBD_REP_ACK, NBD_REP_ERR_INVALID].contains(&number(12)),
                    _ => number(12) == NBD_REP_ERR_TLS_REQD,
                };
                prop_assert!(is_allowed || number(12) == NBD_REP_ERR_TOO_BIG, "{:#x} before TLS", number(12));
                prop_assert_eq!(number(16) as usize, out.len() - 20, "one reply");
            }
            match step {
                Step::NeedInput if seen == input.len() => break,
                Step::NeedInput => seen = (seen + cut * if input.len() > 60_000 { 1000 } else { 1 }).min(input.len()),
                Step::Continue => {}
                Step::StartTls | Step::Close(_) => break,
                Step::Lookup(_) | Step::Transmit(..) => prop_assert!(false, "an export is opened before TLS"),
            }
        }
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic(input in proptest::collection::vec(any::<u8>(), 0..500), cut in 1_usize..64) {
        prop_assert_eq!(negotiate(&input, || usize::MAX / 2), negotiate(&input, || cut));
    }
}

#[test]
fn negotiation_ends_on_invalid_options() {
    let end = |input: &[u8]| negotiate(input, || 3).2;
    assert_eq!(end(&4_u32.to_be_bytes()), "unknown client flags 0x4");
    assert_eq!(
        end(&[0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        "wrong magic in an option request"
    );
    let option = |flags: u32, option, data: &[u8]| {
        let bytes = [&flags.to_be_bytes()[..], &option_request(option, data)].concat();
        end(&bytes)
    };
    assert_eq!(option(0, NBD_OPT_GO, b""), "option 7 requires fixed newstyle negotiation");
    assert_eq!(option(3, NBD_OPT_EXPORT_NAME, &[b'x'; 65_537]), "option data of 65537 bytes is too long");
    assert_eq!(
        option(3, NBD_OPT_EXPORT_NAME, &[b'x'; 4097]),
        "the export of NBD_OPT_EXPORT_NAME is not available"
    );
    assert_eq!(option(3, NBD_OPT_ABORT, b""), "the client aborted the negotiation");
    assert_eq!(option(1, NBD_OPT_EXPORT_NAME, b"vol"), "transmit vol");
}

#[test]
fn negotiation_matches_golden_bytes() {
    let mut input = 3_u32.to_be_bytes().to_vec();
    input.extend(option_request(NBD_OPT_GO, &info_request(b"vol", &[])));
    let (out, taken, end) = negotiate(&input, || 1);
    assert_eq!(taken, input.len());
    assert_eq!(end, "transmit vol");
    let golden: &[u8] = include_bytes!("go_reply.bin");
    assert_eq!(out, golden);
}
