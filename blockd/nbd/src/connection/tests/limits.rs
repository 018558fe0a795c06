//! Limits of a connection: bytes in flight, jobs and timeouts.

use super::*;

/// Repeats `request` until the connection stops receiving, without sending replies; returns the received and
/// charged bytes.
fn flood(driver: &mut Driver, request: &[u8]) -> (usize, u64) {
    let mut taken_bytes = 0;
    let input = request.repeat(20_000);
    while let Some(len) = driver.receive_some(&input, usize::MAX) {
        taken_bytes += len;
        while driver.work_some(0) {}
        assert!(taken_bytes < 100 << 20, "the connection does not stop receiving");
    }
    (taken_bytes, driver.connection.charged_bytes())
}

#[test]
fn client_not_reading_is_limited() {
    for len_bytes in [1, 4096, 100_000, 300_000] {
        let mut driver = Driver::attached(limits());
        let (_, charged) = flood(&mut driver, &read_request(1, len_bytes));
        let one = u64::from(len_bytes) + REQUEST_OVERHEAD_BYTES;
        assert!(charged <= IN_FLIGHT_BYTES && charged > IN_FLIGHT_BYTES - one, "{charged}");
        // Once the client reads, the rest is served.
        while driver.send_some(usize::MAX) || driver.work_some(0) {}
        assert!(driver.connection.start_receive(driver.now).is_some());
    }
    // Invalid requests are charged too.
    let mut driver = Driver::attached(limits());
    let invalid = Request { flags: 0, command: 77, cookie: 0, offset_bytes: 0, len_bytes: 0 }.encode();
    assert_eq!(flood(&mut driver, &invalid).1, IN_FLIGHT_BYTES);
}

#[test]
fn request_above_limit_is_served_alone() {
    let limits = ServerConfig { in_flight_bytes_per_connection: 100_000, ..limits() };
    let mut driver = Driver::attached(limits);
    driver.run(&[read_request(1, 2 << 20), read_request(2, 2 << 20)].concat(), &[1 << 20]);
    assert_eq!(driver.sent.len(), 2 * (16 + (2 << 20)));
    assert_eq!(driver.budget.used_bytes(), 0);
}

#[test]
fn connection_past_a_timeout_is_aborted() {
    let mut driver = Driver::new();
    let at = |driver: &mut Driver, seconds: u64| {
        driver.now += Duration::from_secs(seconds);
        driver.with_context(Connection::check_time);
        driver.connection.is_aborted()
    };
    assert!(!at(&mut driver, 9));
    assert!(at(&mut driver, 2), "the negotiation takes 11 s");

    let mut driver = Driver::attached(limits());
    assert!(!at(&mut driver, 3600));
    driver.run(&read_request(1, 100), &[1]);
    let transfer = driver.receive_some(&read_request(2, 100), 1000);
    assert_eq!(transfer, Some(28));
    let _sending = driver.connection.start_send(driver.now, &mut driver.pool).unwrap();
    assert!(!at(&mut driver, 61), "no connection waits for memory");
    driver.budget.add_stuck_waiter(Box::new(|| {}));
    assert!(!at(&mut driver, 59));
    assert!(at(&mut driver, 2), "another connection waits for memory");

    // Single bytes do not extend the deadline.
    let mut driver = Driver::attached(limits());
    driver.receive_some(&read_request(1, 300_000), 1000);
    driver.work_some(0);
    driver.budget.add_stuck_waiter(Box::new(|| {}));
    for second in 0..60 {
        assert!(driver.send_some(1));
        assert_eq!(at(&mut driver, 1), second == 59);
    }

    let mut driver = Driver::attached(limits());
    driver.receive_some(&read_request(1, 300_000), 1000);
    driver.with_context(|connection, cx| connection.drain("requested by the test", cx));
    assert!(!at(&mut driver, 29));
    assert!(!driver.connection.is_finished(), "a request is in flight");
    assert!(at(&mut driver, 2));
    assert!(!driver.connection.is_finished(), "the request is still in flight");
    driver.work_some(0);
    assert!(driver.connection.is_finished());
}

#[test]
fn stalled_payload_is_dropped_when_others_wait() {
    let at = |driver: &mut Driver, seconds: u64| {
        driver.now += Duration::from_secs(seconds);
        driver.with_context(Connection::check_time);
        driver.connection.is_aborted()
    };
    // The first payload has its own buffer, the second is discarded.
    for offset_bytes in [0, DEVICE_BYTES as u64] {
        let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes, len_bytes: 300_000 };
        let mut driver = Driver::attached(limits());
        assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
        let _first = driver.connection.start_receive(driver.now).unwrap();
        let soon = driver.now + Duration::from_secs(10);
        assert_eq!(driver.connection.next_check(), Some(soon));
        assert!(!at(&mut driver, 11), "no connection waits for memory");
        driver.budget.add_stuck_waiter(Box::new(|| {}));
        assert!(!at(&mut driver, 9));
        assert!(at(&mut driver, 1), "another connection waits for memory");
        assert_eq!(driver.connection.next_check(), None);

        let mut driver = Driver::attached(limits());
        assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
        driver.budget.add_stuck_waiter(Box::new(|| {}));
        for second in 0..10 {
            let mut slow = driver.connection.start_receive(driver.now).unwrap();
            slow.buffer.framed_mut()[slow.range.start] = 7;
            assert_eq!(at(&mut driver, 1), second == 9, "one byte each second, after {second} s");
            driver.with_context(|connection, cx| connection.end_receive(slow.buffer, Ok(1), cx));
        }
    }
    // A client that makes progress is not dropped.
    let write = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 1, offset_bytes: 0, len_bytes: 3 << 20 };
    let mut driver = Driver::attached(limits());
    assert_eq!(driver.receive_some(&write.encode(), usize::MAX), Some(REQUEST_LEN_BYTES));
    driver.budget.add_stuck_waiter(Box::new(|| {}));
    for _ in 0..6 {
        assert_eq!(driver.receive_some(&[7; 1 << 19], usize::MAX), Some(1 << 19));
        assert!(!at(&mut driver, 4));
    }
    // An idle connection holds no charged memory.
    let mut driver = Driver::attached(limits());
    driver.budget.add_stuck_waiter(Box::new(|| {}));
    let _idle = driver.connection.start_receive(driver.now).unwrap();
    assert_eq!(driver.connection.next_check(), None);
    assert!(!at(&mut driver, 3600));
}

#[test]
fn connection_at_the_total_limit_has_its_guaranteed_share() {
    let mut driver = Driver::attached(limits());
    // Other connections have charged the whole budget.
    driver.budget.exhaust();
    assert_eq!(driver.receive_some(&read_request(1, 300_000), 100), Some(28));
    assert!(driver.work.is_empty());
    assert!(driver.connection.start_receive(driver.now).is_none(), "the request waits");
    driver.budget.release(1 << 30);
    driver.with_context(Connection::retry);
    while driver.send_some(usize::MAX) || driver.work_some(0) {}
    assert_eq!(driver.sent.len(), SIMPLE_REPLY_LEN_BYTES + 300_000);

    let mut driver = Driver::attached(limits());
    driver.budget.exhaust();
    let (_, charged) = flood(&mut driver, &read_request(1, 4096));
    assert_eq!(charged, crate::connection::flow::GUARANTEED_BYTES);
    assert!(driver.budget.is_exhausted(), "the next request waits");
    // An aborted connection leaves the queue.
    driver.with_context(|connection, cx| connection.abort("requested by the test", cx));
    assert!(!driver.budget.is_exhausted());
}

#[test]
fn single_connection_does_not_occupy_all_workers() {
    let trim = Request { flags: 0, command: NBD_CMD_TRIM, cookie: 1, offset_bytes: 0, len_bytes: 4096 };
    let mut driver = Driver::attached(limits());
    let input = trim.encode().repeat(3 * MAX_JOBS);
    assert_eq!(driver.receive_some(&input, usize::MAX), Some(input.len()));
    assert_eq!(driver.work.len(), MAX_JOBS);
    assert!(driver.connection.start_receive(driver.now).is_none(), "the request waits");
    driver.work_some(0);
    assert_eq!(driver.work.len(), MAX_JOBS, "the next request follows a completed one");
    while driver.work_some(0) || driver.send_some(usize::MAX) {}
    assert_eq!(driver.sent.len(), 3 * MAX_JOBS * SIMPLE_REPLY_LEN_BYTES);
    assert!(driver.connection.start_receive(driver.now).is_some());
}

#[test]
fn idle_local_device_stays_connected() {
    let limits = ServerConfig { idle_timeout: Some(Duration::from_secs(60)), ..limits() };
    for is_local in [false, true] {
        let client = Client { is_local, ..Client::default() };
        let mut driver = Driver::of_client(limits.clone(), TlsMode::Off, client);
        driver.run(&hello(&[(NBD_OPT_EXPORT_NAME, b"")]), &[1 << 20]);
        driver.now += Duration::from_secs(61);
        driver.with_context(Connection::check_time);
        assert_eq!(driver.connection.start_receive(driver.now).is_some(), is_local);
    }
}

#[test]
fn idle_connection_is_closed_if_configured() {
    let limits = ServerConfig { idle_timeout: Some(Duration::from_secs(60)), ..limits() };
    let wait = |driver: &mut Driver, seconds: u64| {
        driver.now += Duration::from_secs(seconds);
        driver.with_context(Connection::check_time);
    };
    let mut driver = Driver::attached(limits.clone());
    wait(&mut driver, 59);
    driver.run(&read_request(1, 100), &[1000]);
    wait(&mut driver, 59);
    assert!(driver.connection.start_receive(driver.now).is_some(), "the connection was not idle");
    assert_eq!(driver.connection.next_check(), Some(driver.now + Duration::from_secs(1)));
    wait(&mut driver, 1);
    assert!(driver.connection.should_cancel_receive());

    // A connection with a request in flight is not idle.
    let mut driver = Driver::attached(limits);
    driver.receive_some(&read_request(1, 300_000), 1000);
    wait(&mut driver, 61);
    assert!(!driver.work.is_empty());
    assert!(driver.connection.start_receive(driver.now).is_some());
    assert!(driver.connection.next_check() > Some(driver.now), "the next check is later");
}
