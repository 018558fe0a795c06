//! Connections over TLS: replies, limits and errors.

use std::io::Write;

use super::tls_driver::{TlsDriver, offered};
use super::*;
use crate::test_wire::option_request;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Replies over TLS equal plaintext replies, for any transfer boundaries and with a key update.
    #[test]
    fn replies_equal_plaintext_replies(
        requests in any_requests(),
        steps in proptest::collection::vec(prop_oneof![1 => 1_usize..50, 2 => 1_usize..200_000], 8..20),
        is_old in any::<bool>(),
        key_update_at in 0_usize..300_000,
    ) {
        let (input, reads) = conversation(ReplyMode::Simple, &requests);
        let mut plain = Driver::attached(limits());
        plain.run(&input, &[1 << 20]);
        let version = if is_old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
        let mut secure = TlsDriver::attached(version);
        let (before, after) = input.split_at(key_update_at.min(input.len()));
        secure.run(before, &steps);
        if !is_old {
            secure.client.refresh_traffic_keys().unwrap();
        }
        secure.run(after, &steps);
        prop_assert!(secure.failure.is_none(), "{:?}", secure.failure);
        prop_assert!(replies(&plain.sent, &reads) == replies(&secure.received, &reads), "replies differ");
        prop_assert!(*plain.catalog.0.data.lock().unwrap() == *secure.driver.catalog.0.data.lock().unwrap(), "contents differ");
        secure.client.send_close_notify();
        secure.run(&[], &steps);
        prop_assert!(secure.peer_closed, "the server sent no close_notify");
        secure.assert_ends();
    }

    /// A flipped bit ends the connection before the request is executed.
    #[test]
    fn tampered_requests_are_not_executed(at in 0_usize..9_000, step in 1_usize..3_000) {
        let mut secure = TlsDriver::attached(&rustls::version::TLS13);
        let data = secure.driver.catalog.0.data.lock().unwrap().clone();
        let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 512, len_bytes: 9_000 };
        secure.client.writer().write_all(&[&write.encode()[..], &[0xaa; 9_000]].concat()).unwrap();
        while secure.client.write_tls(&mut secure.to_server).unwrap() > 0 {}
        secure.to_server[5 + at] ^= 1;
        secure.run(&[], &[step]);
        prop_assert!(secure.received.is_empty());
        prop_assert!(*secure.driver.catalog.0.data.lock().unwrap() == data);
        prop_assert!(matches!(secure.failure, Some(rustls::Error::AlertReceived(_))), "{:?}", secure.failure);
        prop_assert!(secure.driver.connection.is_finished());
        secure.assert_ends();
    }
}

#[test]
fn sessions_cut_at_every_byte_release_their_budget() {
    let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 500 };
    let input =
        [&option_request(NBD_OPT_EXPORT_NAME, b"")[..], &write.encode(), &[1; 500], &read_request(2, 100)]
            .concat();
    for cut in 0.. {
        let mut secure = TlsDriver::started(&rustls::version::TLS13);
        secure.client.writer().write_all(&input).unwrap();
        let mut sent_bytes = 0;
        let mut is_whole = true;
        loop {
            while secure.client_step() {}
            let len = secure.to_server.len();
            if sent_bytes + len > cut {
                secure.to_server.truncate(cut - sent_bytes);
                is_whole = false;
            }
            sent_bytes += secure.to_server.len();
            let mut progress = false;
            while secure.server_step(usize::MAX)
                || secure.driver.send_some(usize::MAX)
                || secure.driver.work_some(0)
            {
                progress = true;
            }
            if !progress || !is_whole {
                break;
            }
        }
        secure.assert_ends();
        if is_whole {
            assert!(cut > 1200, "the session ended after {cut} bytes");
            return;
        }
    }
}

#[test]
fn random_bytes_instead_of_tls_get_an_alert() {
    for noise in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &option_request(NBD_OPT_LIST, b""),
        &[22, 3, 1, 0xff, 0xff, 0],
        &[0; 3000],
    ] {
        let mut secure = TlsDriver::started(&rustls::version::TLS13);
        assert!(secure.driver.receive_some(noise, usize::MAX).is_some());
        while secure.driver.work_some(0) || secure.driver.send_some(usize::MAX) {}
        assert_eq!(secure.driver.sent.first(), Some(&21), "an alert");
        assert!(secure.driver.connection.is_finished());
        secure.assert_ends();
    }
}

#[test]
fn client_not_reading_is_limited_over_tls() {
    for len_bytes in [1, 4096, 300_000] {
        let mut secure = TlsDriver::attached(&rustls::version::TLS13);
        // One send never completes.
        secure.client.writer().write_all(&read_request(0, len_bytes)).unwrap();
        secure.client_step();
        while secure.server_step(usize::MAX) || secure.driver.work_some(0) {}
        let stalled =
            secure.driver.connection.start_send(secure.driver.now, &mut secure.driver.pool).unwrap();
        assert!(secure.driver.connection.charged_bytes() > 0, "a send in progress is charged");
        let mut taken_bytes = 0;
        loop {
            secure.client.writer().write_all(&read_request(1, len_bytes).repeat(100)).unwrap();
            secure.client_step();
            let before = taken_bytes;
            let waiting_bytes = secure.to_server.len();
            while secure.server_step(usize::MAX) {
                while secure.driver.work_some(0) {}
            }
            taken_bytes += waiting_bytes - secure.to_server.len();
            if taken_bytes == before {
                break;
            }
            assert!(taken_bytes < 10 << 20, "the connection does not stop receiving");
        }
        let charged = secure.driver.connection.charged_bytes();
        assert!(charged <= IN_FLIGHT_BYTES, "{charged}");
        // The client reads: all received requests are answered.
        let len = stalled.range.len();
        secure.driver.sent.extend_from_slice(&stalled.buffer.framed()[stalled.range]);
        secure.driver.with_context(|connection, cx| connection.end_send(stalled.buffer, Ok(len), cx));
        secure.run(&[], &[1 << 20]);
        assert!(secure.failure.is_none());
        assert_eq!(secure.received.len() % (SIMPLE_REPLY_LEN_BYTES + len_bytes as usize), 0);
        assert_eq!(secure.driver.budget.used_bytes(), 0);
        assert!(secure.to_server.is_empty());
    }
}

/// Creates a driver whose limit admits one request, with two sent requests that need several sends each.
fn with_waiting_request(version: &'static rustls::SupportedProtocolVersion) -> TlsDriver {
    let limits = ServerConfig { in_flight_bytes_per_connection: 1, ..limits() };
    let mut secure = TlsDriver::attached_with(limits, version);
    for cookie in 1..=2 {
        secure.client.writer().write_all(&read_request(cookie, 300_000)).unwrap();
    }
    secure
}

#[test]
fn close_notify_after_waiting_request_is_processed() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut secure = with_waiting_request(version);
        secure.client.send_close_notify();
        secure.client_step();
        assert!(secure.server_step(usize::MAX));
        assert!(secure.to_server.is_empty(), "one receive takes all bytes");
        secure.run(&[], &[1 << 20]);
        assert_eq!(secure.received.len(), 2 * (SIMPLE_REPLY_LEN_BYTES + 300_000));
        assert!(secure.peer_closed);
        assert!(secure.driver.connection.is_finished());
        secure.assert_ends();
    }
}

#[test]
fn key_update_after_waiting_request_is_processed() {
    let mut secure = with_waiting_request(&rustls::version::TLS13);
    secure.client.refresh_traffic_keys().unwrap();
    secure.client_step();
    assert!(secure.server_step(usize::MAX));
    assert!(secure.to_server.is_empty(), "one receive takes all bytes");
    secure.run(&[], &[1 << 20]);
    assert!(secure.failure.is_none());
    assert_eq!(secure.received.len(), 2 * (SIMPLE_REPLY_LEN_BYTES + 300_000));
    secure.assert_ends();
}

#[test]
fn tls_alert_follows_half_sent_reply() {
    let mut secure = TlsDriver::attached(&rustls::version::TLS13);
    secure.client.writer().write_all(&read_request(1, 600_000)).unwrap();
    secure.client_step();
    while secure.server_step(usize::MAX) || secure.driver.work_some(0) {}
    assert!(secure.driver.send_some(usize::MAX), "the first part of the reply");
    let noise = [&[23, 3, 3, 0, 40][..], &[0; 40]].concat();
    assert_eq!(secure.driver.receive_some(&noise, usize::MAX), Some(noise.len()));
    secure.run(&[], &[1 << 20]);
    assert!(matches!(secure.failure, Some(rustls::Error::AlertReceived(_))), "{:?}", secure.failure);
    assert!(secure.driver.connection.is_finished());
    secure.assert_ends();
}

#[test]
fn tls12_session_uses_chacha20() {
    let secure = TlsDriver::attached(&rustls::version::TLS12);
    let suite = secure.client.negotiated_cipher_suite().unwrap().suite();
    assert!(suite.as_str().unwrap().contains("CHACHA20"), "{suite:?}");
    TlsDriver::attached(&rustls::version::TLS13).assert_ends();
}

#[test]
fn small_replies_share_one_tls_send() {
    let mut secure = TlsDriver::attached(&rustls::version::TLS13);
    // At an offset that is read on the ring thread.
    secure.client.writer().write_all(&read_request(1, 30_000).repeat(8)).unwrap();
    secure.client_step();
    while secure.server_step(usize::MAX) {}
    let before = secure.driver.sent.len();
    assert!(secure.driver.send_some(usize::MAX));
    let len = secure.driver.sent.len() - before;
    assert!(len > 200_000, "{len} bytes in the first send");
}

#[test]
fn plaintext_after_starttls_is_refused() {
    let mut driver = offered();
    let hello = hello(&[(NBD_OPT_STARTTLS, b""), (NBD_OPT_LIST, b"")]);
    assert!(driver.send_some(usize::MAX));
    driver.receive_some(&hello, usize::MAX);
    assert!(driver.connection.is_aborted());
    assert!(!driver.send_some(usize::MAX));
    // Before the acknowledgement is sent, the connection receives nothing.
    let mut driver = offered();
    assert!(driver.send_some(usize::MAX));
    driver.receive_some(&hello[..20], usize::MAX);
    assert!(driver.connection.start_receive(driver.now).is_none(), "no plaintext is received");
}

#[test]
fn starttls_within_tls_is_refused() {
    let mut secure = TlsDriver::started(&rustls::version::TLS13);
    secure.run(&option_request(NBD_OPT_STARTTLS, b""), &[7]);
    assert_eq!(secure.received[12..16], NBD_REP_ERR_INVALID.to_be_bytes());
    secure.received.clear();
    secure.run(&option_request(NBD_OPT_ABORT, b""), &[7]);
    assert_eq!(secure.received[12..16], NBD_REP_ACK.to_be_bytes());
    assert!(secure.peer_closed);
    assert!(secure.driver.connection.is_finished());
}

#[test]
fn slow_tls_handshake_times_out() {
    let mut secure = TlsDriver::started(&rustls::version::TLS13);
    secure.client_step();
    secure.driver.receive_some(&secure.to_server, 100);
    secure.driver.now += Duration::from_secs(9);
    secure.driver.with_context(Connection::check_time);
    assert!(!secure.driver.connection.is_aborted());
    secure.driver.now += Duration::from_secs(1);
    secure.driver.with_context(Connection::check_time);
    assert!(secure.driver.connection.is_aborted());
}

/// Creates a driver with a queued handshake job.
fn during_handshake_job() -> TlsDriver {
    let mut secure = TlsDriver::started(&rustls::version::TLS13);
    secure.client_step();
    assert!(secure.server_step(usize::MAX));
    assert_eq!(secure.driver.work.len(), 1, "the handshake is a job");
    assert!(!secure.driver.send_some(usize::MAX));
    assert!(secure.driver.connection.start_receive(secure.driver.now).is_none());
    secure
}

#[test]
fn handshake_step_runs_as_one_job() {
    let mut secure = during_handshake_job();
    secure.driver.work_some(0);
    assert!(secure.driver.work.is_empty(), "no job without new input");
    while secure.driver.send_some(usize::MAX) {}
    // One receive has the end of the handshake and the first option.
    secure.client_step();
    secure.client.writer().write_all(&option_request(NBD_OPT_EXPORT_NAME, b"")).unwrap();
    secure.client_step();
    assert!(secure.server_step(usize::MAX));
    assert!(secure.to_server.is_empty(), "one receive takes all bytes");
    secure.run(&[], &[1 << 20]);
    assert_eq!(secure.received.len(), 10, "the option after the handshake is processed");
    secure.assert_ends();
}

#[test]
fn connection_ending_in_a_handshake_waits_for_its_job() {
    for is_dropped in [true, false] {
        let mut secure = during_handshake_job();
        if is_dropped {
            secure.driver.now += Duration::from_secs(10);
            secure.driver.with_context(Connection::check_time);
            assert!(secure.driver.connection.is_aborted());
        } else {
            secure.driver.with_context(|connection, cx| connection.drain("requested by the test", cx));
        }
        assert!(!secure.driver.connection.is_finished() && !secure.driver.send_some(usize::MAX));
        secure.driver.work_some(0);
        while secure.driver.send_some(usize::MAX) {}
        assert!(secure.driver.connection.is_finished());
        assert_eq!(secure.driver.sent.is_empty(), is_dropped, "a dropped client gets no alert");
        secure.assert_ends();
    }
}
