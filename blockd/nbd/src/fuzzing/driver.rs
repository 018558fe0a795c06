//! Driver of a connection without sockets, with any receive and send boundaries and any order of work.

use std::io;
use std::time::Instant;

use crate::connection::budget::Budget;
use crate::connection::buffer_pool::BufferPool;
use crate::connection::flow::{Context, Wake};
use crate::connection::remote_budgets::RemoteBudgets;
use crate::connection::{Connection, ConnectionLimits, TlsOffer};
use crate::device::{Client, ExportCatalog};
use crate::server::worker::{Done, Work};

/// Connection with its surroundings.
pub(crate) struct Driver<C> {
    pub(crate) connection: Connection,
    pub(crate) catalog: C,
    pub(crate) pool: BufferPool,
    pub(crate) budget: Budget<Wake>,
    remote_budgets: RemoteBudgets,
    pub(crate) work: Vec<Work>,
    pub(crate) sent: Vec<u8>,
    pub(crate) now: Instant,
    /// Time of the thread's last check for completions.
    pub(crate) looked_before: Instant,
}

impl<C: ExportCatalog> Driver<C> {
    /// Creates a driver before the greeting.
    pub(crate) fn over(catalog: C, limits: ConnectionLimits, tls: TlsOffer, client: Client) -> Self {
        let remote_budgets = RemoteBudgets::new(1 << 30);
        let (mut pool, budget, mut work) = (BufferPool::new(8 << 20), Budget::new(1 << 30), Vec::new());
        let now = Instant::now();
        let mut cx = Context {
            pool: &mut pool,
            budget: &budget,
            remote_budgets: &remote_budgets,
            wake: &|| Box::new(|| {}),
            work: &mut work,
            requests: &mut 0,
            now,
            looked_before: now,
        };
        let connection = Connection::new(tracing::Span::none(), client, tls, limits, &mut cx);
        Self {
            connection,
            catalog,
            pool,
            budget,
            remote_budgets,
            work,
            sent: Vec::new(),
            now,
            looked_before: now,
        }
    }

    pub(crate) fn tell(&mut self, act: impl FnOnce(&mut Connection, &mut Context<'_>)) {
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
                looked_before: self.looked_before,
            },
        );
    }

    pub(crate) fn send_some(&mut self, max_bytes: usize) -> bool {
        let Some(transfer) = self.connection.start_send(self.now, &mut self.pool) else {
            return false;
        };
        let len = transfer.range.len().min(max_bytes);
        self.sent.extend_from_slice(&transfer.buffer.framed()[transfer.range][..len]);
        self.tell(|connection, cx| connection.end_send(transfer.buffer, Ok(len), cx));
        true
    }

    pub(crate) fn work_some(&mut self, choice: usize) -> bool {
        if self.work.is_empty() {
            return false;
        }
        let work = self.work.swap_remove(choice % self.work.len());
        let done = match work {
            Work::Request(request) => Done::Request(request.run()),
            Work::Lookup(lookup, client) => Done::Answer(lookup.resolve(&self.catalog, &client)),
            Work::Handshake(mut session) => {
                let opened = session.shake_hands();
                Done::Handshake(session, opened)
            }
        };
        self.tell(|connection, cx| connection.work_done(done, cx));
        true
    }

    /// Receives part of `input`; returns the number of bytes.
    pub(crate) fn receive_some(&mut self, input: &[u8], max_bytes: usize) -> Option<usize> {
        let mut transfer = self.connection.start_receive(self.now)?;
        let len = transfer.range.len().min(max_bytes).min(input.len());
        if len == 0 && !input.is_empty() {
            return None;
        }
        transfer.buffer.framed_mut()[transfer.range][..len].copy_from_slice(&input[..len]);
        self.tell(|connection, cx| connection.end_receive(transfer.buffer, Ok(len), cx));
        Some(len)
    }

    /// Fails a receive, if one can be started.
    pub(crate) fn fail_receive(&mut self) -> bool {
        let Some(transfer) = self.connection.start_receive(self.now) else {
            return false;
        };
        let error = io::Error::from(io::ErrorKind::ConnectionReset);
        self.tell(|connection, cx| connection.end_receive(transfer.buffer, Err(error), cx));
        true
    }

    /// Fails a send, if there is one.
    pub(crate) fn fail_send(&mut self) -> bool {
        let Some(transfer) = self.connection.start_send(self.now, &mut self.pool) else {
            return false;
        };
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        self.tell(|connection, cx| connection.end_send(transfer.buffer, Err(error), cx));
        true
    }

    /// Feeds `input` in steps of the given sizes until nothing more happens.
    #[cfg(test)]
    pub(crate) fn run(&mut self, input: &[u8], steps: &[usize]) {
        self.run_checked(input, steps, |_| {});
    }

    /// Feeds `input` with a check after each step.
    pub(crate) fn run_checked(&mut self, mut input: &[u8], steps: &[usize], check: impl Fn(&Self)) {
        let mut idle = 0;
        for index in 0.. {
            check(self);
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
            // Every kind of event has been tried.
            if idle > 3 * steps.len() + 3 {
                let more = self.send_some(step) || self.work_some(step);
                if !more && (input.is_empty() || self.connection.is_finished()) {
                    return;
                }
                if !more && let Some(len) = self.receive_some(input, step) {
                    input = &input[len..];
                } else {
                    assert!(more, "stuck with {} bytes to receive", input.len());
                }
                idle = 0;
            }
        }
    }
}
