//! Driver of a connection without sockets, with arbitrary receive and send boundaries and order of jobs.

use super::*;
use crate::connection::budget::Budget;
use crate::connection::buffer_pool::BufferPool;
use crate::connection::flow::Context;
use crate::connection::remote_budgets::RemoteBudgets;
use crate::server::worker::{Done, Work};

/// Connection with the resources of its ring thread.
pub(super) struct Driver {
    pub(super) connection: Connection,
    pub(super) catalog: Single,
    pub(super) pool: BufferPool,
    pub(super) budget: Budget,
    remote_budgets: RemoteBudgets,
    pub(super) work: Vec<Work>,
    pub(super) sent: Vec<u8>,
    pub(super) now: Instant,
    /// End of the thread's previous wait for completions.
    pub(super) previous_wait_at: Instant,
}

impl Driver {
    pub(super) fn new() -> Self {
        Self::of_client(limits(), TlsMode::Off, Client::default())
    }

    /// Creates a driver before the greeting.
    pub(super) fn of_client(limits: ServerConfig, tls: TlsMode, client: Client) -> Self {
        let mut pool = BufferPool::new(8 << 20);
        let now = Instant::now();
        Self {
            connection: Connection::new(tracing::Span::none(), client, tls, Arc::new(limits), now, &mut pool),
            catalog: Single(device()),
            pool,
            budget: Budget::new(1 << 30),
            remote_budgets: RemoteBudgets::new(1 << 30),
            work: Vec::new(),
            sent: Vec::new(),
            now,
            previous_wait_at: now,
        }
    }

    /// Creates a driver after the negotiation.
    pub(super) fn attached(limits: ServerConfig) -> Self {
        Self::attached_in(ReplyMode::Simple, limits)
    }

    pub(super) fn attached_in(mode: ReplyMode, limits: ServerConfig) -> Self {
        let mut driver = Self::of_client(limits, TlsMode::Off, Client::default());
        let base = meta_request(b"", &[BASE_ALLOCATION]);
        let mut options: Vec<(u32, &[u8])> = match mode {
            ReplyMode::Simple => vec![],
            ReplyMode::Structured => vec![(NBD_OPT_STRUCTURED_REPLY, b"")],
            ReplyMode::Extended => vec![(NBD_OPT_EXTENDED_HEADERS, b"")],
        };
        if mode != ReplyMode::Simple {
            options.push((NBD_OPT_SET_META_CONTEXT, &base));
        }
        options.push((NBD_OPT_EXPORT_NAME, b""));
        driver.run(&hello(&options), &[1 << 20]);
        driver.sent.clear();
        driver
    }

    pub(super) fn with_context(&mut self, act: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        act(
            &mut self.connection,
            &mut Context {
                pool: &mut self.pool,
                budget: &self.budget,
                remote_budgets: &self.remote_budgets,
                wake: &|| Box::new(|| {}),
                work: &mut self.work,
                requests: &mut 0,
                now: self.now,
                previous_wait_at: self.previous_wait_at,
            },
        );
    }

    pub(super) fn send_some(&mut self, max_bytes: usize) -> bool {
        let Some(transfer) = self.connection.start_send(self.now, &mut self.pool) else {
            return false;
        };
        let len = transfer.range.len().min(max_bytes);
        self.sent.extend_from_slice(&transfer.buffer.framed()[transfer.range][..len]);
        self.with_context(|connection, cx| connection.end_send(transfer.buffer, Ok(len), cx));
        true
    }

    pub(super) fn work_some(&mut self, choice: usize) -> bool {
        if self.work.is_empty() {
            return false;
        }
        let work = self.work.swap_remove(choice % self.work.len());
        let done = match work {
            Work::Request(request) => Done::Request(request.run()),
            Work::Lookup(lookup, client) => Done::LookupResult(lookup.resolve(&self.catalog, &client)),
            Work::Handshake(mut session) => {
                let opened = session.advance_handshake();
                Done::Handshake(session, opened)
            }
        };
        self.with_context(|connection, cx| connection.work_done(done, cx));
        true
    }

    /// Receives part of `input`; returns the number of bytes.
    pub(super) fn receive_some(&mut self, input: &[u8], max_bytes: usize) -> Option<usize> {
        let mut transfer = self.connection.start_receive(self.now)?;
        let len = transfer.range.len().min(max_bytes).min(input.len());
        if len == 0 && !input.is_empty() {
            return None;
        }
        transfer.buffer.framed_mut()[transfer.range][..len].copy_from_slice(&input[..len]);
        self.with_context(|connection, cx| connection.end_receive(transfer.buffer, Ok(len), cx));
        Some(len)
    }

    /// Feeds `input` in steps of the given sizes until nothing more happens.
    pub(super) fn run(&mut self, mut input: &[u8], steps: &[usize]) {
        let mut idle = 0;
        for index in 0.. {
            let step = steps[index % steps.len()].max(1);
            let progress = match (index + step) % 3 {
                0 => self.send_some(step),
                1 => self.work_some(step),
                _ if input.is_empty() => false,
                _ => match self.receive_some(input, step) {
                    Some(len) => {
                        input = &input[len..];
                        true
                    }
                    None => false,
                },
            };
            idle = if progress { 0 } else { idle + 1 };
            // Each kind of event has been tried.
            if idle > 3 * steps.len() + 3 {
                let more = self.send_some(step) || self.work_some(step);
                if !more && (input.is_empty() || self.connection.is_finished()) {
                    return;
                }
                if !more && let Some(len) = self.receive_some(input, step) {
                    input = &input[len..];
                } else {
                    assert!(more, "no progress with {} bytes to receive", input.len());
                }
                idle = 0;
            }
        }
    }
}
