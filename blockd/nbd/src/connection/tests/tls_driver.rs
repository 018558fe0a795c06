//! Driver of a connection over TLS without sockets, with a rustls client.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::LazyLock;

use rustls::ClientConnection;

use super::*;
use crate::test_certs::Authority;
use crate::test_wire::option_request;
use crate::tls::identity::{TlsFiles, TlsIdentity};

struct Fixture {
    authority: Authority,
    identity: Arc<TlsIdentity>,
    alice: PathBuf,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let files = TlsFiles { certificate, key, client_ca: Some(authority.ca()), client_crl: None };
    let identity = Arc::new(TlsIdentity::load(files).unwrap());
    let alice = authority.client_dir("alice", false);
    Fixture { authority, identity, alice }
});

/// Connection over TLS with its client.
pub(super) struct TlsDriver {
    pub(super) driver: Driver,
    pub(super) client: ClientConnection,
    /// Encrypted bytes that the connection has not received.
    pub(super) to_server: Vec<u8>,
    /// Plaintext received by the client.
    pub(super) received: Vec<u8>,
    /// Number of sent bytes that the client has received.
    pub(super) seen_bytes: usize,
    pub(super) client_reads: bool,
    pub(super) failure: Option<rustls::Error>,
    pub(super) peer_closed: bool,
}

pub(super) fn offered() -> Driver {
    offered_with(limits())
}

pub(super) fn offered_with(limits: ServerConfig) -> Driver {
    let config = ServerConfig { tls: Some(Arc::clone(&FIXTURE.identity)), ..limits };
    Driver::of_client(config, TlsMode::Require, Client::default())
}

impl TlsDriver {
    /// Creates a driver after the acknowledgement of STARTTLS.
    pub(super) fn started(version: &'static rustls::SupportedProtocolVersion) -> Self {
        Self::started_with(limits(), version)
    }

    pub(super) fn started_with(
        limits: ServerConfig,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Self {
        let mut driver = offered_with(limits);
        let hello = hello(&[(NBD_OPT_STARTTLS, b"")]);
        driver.run(&hello, &[1 << 20]);
        let reply = &driver.sent[GREETING_LEN_BYTES..];
        assert_eq!(reply[12..], [0, 0, 0, 1, 0, 0, 0, 0], "ACK");
        driver.sent.clear();
        let config = FIXTURE.authority.client_config_of(Some(&FIXTURE.alice), &[version]);
        let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        client.set_buffer_limit(None);
        Self {
            driver,
            client,
            to_server: Vec::new(),
            received: Vec::new(),
            seen_bytes: 0,
            client_reads: true,
            failure: None,
            peer_closed: false,
        }
    }

    /// Creates a driver in transmission.
    pub(super) fn attached(version: &'static rustls::SupportedProtocolVersion) -> Self {
        Self::attached_with(limits(), version)
    }

    pub(super) fn attached_with(
        limits: ServerConfig,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Self {
        let mut this = Self::started_with(limits, version);
        this.run(&option_request(NBD_OPT_EXPORT_NAME, b""), &[1 << 20]);
        assert_eq!(this.received.len(), 10);
        this.received.clear();
        this
    }

    pub(super) fn client_step(&mut self) -> bool {
        let mut progress = false;
        while self.client.wants_write() {
            progress |= self.client.write_tls(&mut self.to_server).unwrap() > 0;
        }
        while self.client_reads && self.seen_bytes < self.driver.sent.len() {
            self.seen_bytes += self.client.read_tls(&mut &self.driver.sent[self.seen_bytes..]).unwrap();
            progress = true;
            match self.client.process_new_packets() {
                Ok(state) => self.peer_closed |= state.peer_has_closed(),
                Err(error) => {
                    self.failure.get_or_insert(error);
                    self.seen_bytes = self.driver.sent.len();
                }
            }
            let mut buffer = [0; 20_000];
            while let Ok(len) = self.client.reader().read(&mut buffer)
                && len > 0
            {
                self.received.extend_from_slice(&buffer[..len]);
            }
        }
        progress
    }

    pub(super) fn server_step(&mut self, step: usize) -> bool {
        if self.to_server.is_empty() {
            return false;
        }
        match self.driver.receive_some(&self.to_server, step) {
            Some(len) if len > 0 => {
                self.to_server.drain(..len);
                true
            }
            _ => false,
        }
    }

    pub(super) fn client_write(&mut self, input: &mut &[u8], step: usize) -> bool {
        let (now, later) = input.split_at(input.len().min(step));
        self.client.writer().write_all(now).unwrap();
        *input = later;
        !now.is_empty()
    }

    /// Writes `input` at the client in steps of the given sizes, and runs both sides until nothing happens.
    pub(super) fn run(&mut self, mut input: &[u8], steps: &[usize]) {
        let mut idle = 0;
        for index in 0.. {
            let step = steps[index % steps.len()].max(1);
            let progress = match (index + step) % 5 {
                0 => self.driver.send_some(step),
                1 => self.driver.work_some(step),
                2 => self.client_step(),
                3 => self.client_write(&mut input, step),
                _ => self.server_step(step),
            };
            idle = if progress { 0 } else { idle + 1 };
            // Each kind of event has been tried.
            if idle > 5 * steps.len() + 5 {
                let more = self.driver.send_some(step)
                    || self.driver.work_some(step)
                    || self.client_step()
                    || self.server_step(step)
                    || self.client_write(&mut input, step);
                if !more {
                    return;
                }
                idle = 0;
            }
        }
    }

    /// Asserts that the connection has ended, or ends when the client closes, and releases all resources.
    pub(super) fn assert_ends(mut self) {
        if !self.driver.connection.is_finished() {
            if let Some(transfer) = self.driver.connection.start_receive(self.driver.now) {
                self.driver.with_context(|connection, cx| connection.end_receive(transfer.buffer, Ok(0), cx));
            }
            while self.driver.send_some(usize::MAX) || self.driver.work_some(0) {}
        }
        assert!(self.driver.connection.is_finished());
        self.driver.connection.release(&mut self.driver.pool, &self.driver.budget);
        assert_eq!(self.driver.budget.used_bytes(), 0);
        assert_eq!(Arc::strong_count(&self.driver.catalog.0), 1);
    }
}
