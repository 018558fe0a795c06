//! Writers that record acknowledged writes until the server dies.
//!
//! Every sector holds the number of its write. After a crash a sector must hold its last acknowledged write
//! or one that was in flight.

use crate::harness::{
    Daemon, Nbd, Rng,
    nbd::{command, flag},
};
use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread::Scope,
};

const SECTOR: u64 = 512;
const BATCH: usize = 16;

/// Range of a volume with one writer, and the possible content of each sector.
#[derive(Clone, Debug)]
pub struct Region {
    first_sector: u64,
    /// Number of the last acknowledged write of each sector; 0 for zeroes.
    acknowledged: Vec<u64>,
    /// Writes that were in flight: first sector, end, number.
    in_flight: Vec<(u64, u64, u64)>,
    next_number: u64,
}

struct Step {
    from: u64,
    to: u64,
    number: u64,
    cookie: u64,
}

fn sector_content(sector: u64, number: u64) -> [u8; SECTOR as usize] {
    let mut content = [0; SECTOR as usize];
    if number != 0 {
        for pair in content.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&number.to_le_bytes());
            pair[8..].copy_from_slice(&sector.to_le_bytes());
        }
    }
    content
}

impl Region {
    /// Creates a region that was never written.
    pub fn new(first_byte: u64, len_bytes: u64) -> Self {
        assert!(first_byte.is_multiple_of(SECTOR) && len_bytes.is_multiple_of(SECTOR), "whole sectors");
        let sectors = (len_bytes / SECTOR) as usize;
        Self {
            first_sector: first_byte / SECTOR,
            acknowledged: vec![0; sectors],
            in_flight: Vec::new(),
            next_number: 1,
        }
    }

    /// Sends writes and zeroes, many in flight, until the connection breaks. Counts the acknowledged ones.
    fn write_until_broken(&mut self, socket: &Path, export: &str, rng: &mut Rng, count: &AtomicU64) {
        // The server may die before its greeting.
        let Ok(mut client) = Nbd::try_open(socket, export) else { return };
        loop {
            let mut batch: Vec<Step> = Vec::new();
            let sent = self.send_batch(&mut client, rng, &mut batch);
            let taken = sent.and_then(|()| self.take_replies(&mut client, &mut batch, count));
            if taken.is_err() {
                self.in_flight.extend(batch.iter().map(|step| (step.from, step.to, step.number)));
                return;
            }
        }
    }

    fn send_batch(&mut self, client: &mut Nbd, rng: &mut Rng, batch: &mut Vec<Step>) -> io::Result<()> {
        let sectors = self.acknowledged.len() as u64;
        for _ in 0..BATCH {
            let len = if rng.one_in(3) { rng.between(1, 7) } else { 8 * rng.between(1, 8) };
            let from = rng.below(sectors - len);
            let from = if rng.one_in(3) { from } else { from / 8 * 8 };
            let to = from + len;
            // The server may execute requests in flight in any order: they must not overlap.
            if batch.iter().any(|step| from < step.to && step.from < to) {
                continue;
            }
            let (offset, len_bytes) = ((self.first_sector + from) * SECTOR, len * SECTOR);
            let fua = if rng.one_in(16) { flag::FUA } else { 0 };
            let number = if rng.one_in(8) { 0 } else { self.next_number };
            self.next_number += 1;
            // The server may execute a request even if sending it fails.
            batch.push(Step { from, to, number, cookie: 0 });
            let cookie = if number == 0 {
                client.start(command::WRITE_ZEROES, fua, offset, len_bytes, &[])?
            } else {
                let data: Vec<u8> = (from..to)
                    .flat_map(|sector| sector_content(self.first_sector + sector, number))
                    .collect();
                client.start(command::WRITE, fua, offset, len_bytes, &data)?
            };
            if let Some(step) = batch.last_mut() {
                step.cookie = cookie;
            }
        }
        Ok(())
    }

    fn take_replies(&mut self, client: &mut Nbd, batch: &mut Vec<Step>, count: &AtomicU64) -> io::Result<()> {
        while !batch.is_empty() {
            let (errno, cookie) = client.reply()?;
            assert_eq!(errno, 0, "a write failed");
            let at = batch.iter().position(|step| step.cookie == cookie).expect("a reply to a request");
            let step = batch.swap_remove(at);
            self.acknowledged[step.from as usize..step.to as usize].fill(step.number);
            count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Checks the region's content, which becomes the acknowledged content.
    fn check(&mut self, client: &mut Nbd) {
        let content = client.read(self.first_sector * SECTOR, self.acknowledged.len() as u64 * SECTOR);
        for (nth, got) in content.chunks_exact(SECTOR as usize).enumerate() {
            let sector = self.first_sector + nth as u64;
            let in_flight =
                self.in_flight.iter().filter(|(from, to, _)| (*from..*to).contains(&(nth as u64)));
            let mut allowed = vec![self.acknowledged[nth]];
            allowed.extend(in_flight.map(|(_, _, number)| *number));
            let found = allowed.iter().find(|number| sector_content(sector, **number) == got);
            let Some(found) = found else {
                let number = u64::from_le_bytes(got[..8].try_into().expect("8 bytes"));
                panic!(
                    "sector {sector} holds write {number} (0 = zeroes), but must hold one of {allowed:?}: acknowledged data is lost"
                );
            };
            self.acknowledged[nth] = *found;
        }
        self.in_flight.clear();
    }
}

/// Starts a writer for each region, which writes until the connection breaks.
pub fn spawn_writers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    regions: &'scope mut [Region],
    (socket, export): (&'scope Path, &'scope str),
    rng: &mut Rng,
    count: &'scope AtomicU64,
) {
    for region in regions {
        let mut rng = Rng::fixed(rng.next_u64());
        scope.spawn(move || region.write_until_broken(socket, export, &mut rng, count));
    }
}

/// Checks the content of all regions of an export.
pub fn check_regions(daemon: &Daemon, export: &str, regions: &mut [Region]) {
    let mut client = daemon.nbd(export);
    regions.iter_mut().for_each(|region| region.check(&mut client));
    client.close();
}
