//! History of a daemon's volumes: the model of states after a power cut.
//!
//! Time is the number of requests in the recorded disk's log. An operation that was answered at time t
//! depends on the first t requests only; an operation requested at time t cannot affect them.

/// The unit of torn writes, which holds one version.
pub const SECTOR_BYTES: u64 = 512;
/// Time of an event that has not happened.
pub const NEVER: usize = usize::MAX;

/// Time of a request and of its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Length of the log before the request.
    pub asked: usize,
    /// Length of the log after the reply.
    pub answered: usize,
}

impl Span {
    /// Returns true if the operation must survive a power cut at `cut`.
    pub fn is_certain(self, cut: usize) -> bool {
        self.answered <= cut
    }

    /// Returns true if the operation may survive a power cut at `cut`.
    pub fn is_possible(self, cut: usize) -> bool {
        self.asked < cut
    }
}

/// Content of a sector by one write.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Number of the write; 0 for zeroes.
    pub version: u64,
    /// Length of the log before the write.
    pub sent: usize,
    /// Length of the log after the reply to its flush.
    pub flushed: usize,
}

/// History of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotHistory {
    /// The name.
    pub name: String,
    /// Its creation.
    pub made: Span,
    /// Its deletion.
    pub deleted: Option<Span>,
    /// The version of each sector.
    pub versions: Vec<u64>,
}

/// History of a volume.
#[derive(Clone, Debug)]
pub struct VolumeHistory {
    /// The name.
    pub name: String,
    /// Its creation.
    pub made: Span,
    /// Its deletion.
    pub deleted: Option<Span>,
    /// Its sizes and the times of their changes, the first at its creation.
    pub sizes: Vec<(Span, u64)>,
    /// Contents of each sector, oldest first, from the initial one.
    pub sectors: Vec<Vec<Content>>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotHistory>,
    /// Acknowledged, unflushed contents: the sector and the index of its content.
    unflushed: Vec<(usize, usize)>,
}

/// Presence after a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It must exist.
    Must,
    /// It may exist.
    May,
    /// It cannot exist.
    Cannot,
}

fn presence(made: Span, deleted: Option<Span>, cut: usize) -> Presence {
    let is_deleted = |test: fn(Span, usize) -> bool| deleted.is_some_and(|span| test(span, cut));
    if !made.is_possible(cut) || is_deleted(Span::is_certain) {
        Presence::Cannot
    } else if made.is_certain(cut) && !is_deleted(Span::is_possible) {
        Presence::Must
    } else {
        Presence::May
    }
}

impl VolumeHistory {
    /// Creates the history of a volume with these initial versions.
    pub fn new(name: &str, made: Span, versions: &[u64]) -> Self {
        let first = |&version| vec![Content { version, sent: made.asked, flushed: 0 }];
        Self {
            name: name.to_owned(),
            made,
            deleted: None,
            sizes: vec![(made, versions.len() as u64 * SECTOR_BYTES)],
            sectors: versions.iter().map(first).collect(),
            snapshots: Vec::new(),
            unflushed: Vec::new(),
        }
    }

    /// Returns the current number of sectors.
    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Notes a write before it is sent.
    pub fn write(&mut self, from: u64, to: u64, version: u64, sent: usize) {
        for (number, contents) in self.sectors.iter_mut().enumerate().take(to as usize).skip(from as usize) {
            self.unflushed.push((number, contents.len()));
            contents.push(Content { version, sent, flushed: NEVER });
        }
    }

    /// Notes that the acknowledged writes of a range are durable.
    pub fn flushed_range(&mut self, from: u64, to: u64, at: usize) {
        for contents in &mut self.sectors[from as usize..to as usize] {
            if let Some(last) = contents.last_mut() {
                last.flushed = last.flushed.min(at);
            }
        }
    }

    /// Returns the number of unflushed writes, for [`flushed`](Self::flushed).
    pub fn written(&self) -> usize {
        self.unflushed.len()
    }

    /// Notes that the first `written` unflushed writes are durable.
    pub fn flushed(&mut self, written: usize, at: usize) {
        for (number, nth) in self.unflushed.drain(..written) {
            let content = &mut self.sectors[number][nth];
            content.flushed = content.flushed.min(at);
        }
    }

    /// Notes a growth.
    pub fn grown(&mut self, sectors: u64, span: Span) {
        self.sizes.push((span, sectors * SECTOR_BYTES));
        self.sectors.resize(sectors as usize, vec![Content { version: 0, sent: span.asked, flushed: 0 }]);
    }

    /// Notes a rollback to these versions; sectors beyond them are zeroes.
    pub fn rolled_back(&mut self, versions: &[u64], span: Span) {
        for (number, contents) in self.sectors.iter_mut().enumerate() {
            let version = versions.get(number).copied().unwrap_or(0);
            contents.push(Content { version, sent: span.asked, flushed: span.answered });
        }
        self.unflushed.clear();
    }

    /// Returns the indexes of the existing snapshots.
    pub fn present_snapshots(&self) -> Vec<usize> {
        let all = self.snapshots.iter().enumerate();
        all.filter(|(_, snapshot)| snapshot.deleted.is_none()).map(|(nth, _)| nth).collect()
    }

    /// Returns its presence after a power cut at `cut`.
    pub fn presence(&self, cut: usize) -> Presence {
        presence(self.made, self.deleted, cut)
    }

    /// Returns the possible sizes after a power cut at `cut`, in bytes.
    pub fn possible_sizes(&self, cut: usize) -> Vec<u64> {
        let certain = self.sizes.iter().rposition(|(span, _)| span.is_certain(cut)).unwrap_or(0);
        let later = self.sizes[certain + 1..].iter().filter(|(span, _)| span.is_possible(cut));
        std::iter::once(&self.sizes[certain]).chain(later).map(|(_, size)| *size).collect()
    }

    /// Returns the possible versions of a sector after a power cut at `cut`.
    pub fn possible_versions(&self, sector: usize, cut: usize) -> impl Iterator<Item = u64> + '_ {
        let contents = &self.sectors[sector];
        let certain = contents.iter().rposition(|content| content.flushed <= cut).unwrap_or(0);
        let later = contents[certain + 1..].iter().filter(move |content| content.sent < cut);
        std::iter::once(&contents[certain]).chain(later).map(|content| content.version)
    }
}

impl SnapshotHistory {
    /// Returns its presence after a power cut at `cut`.
    pub fn presence(&self, cut: usize) -> Presence {
        presence(self.made, self.deleted, cut)
    }
}

/// Returns the content of a version of a sector.
pub fn sector_content(sector: u64, version: u64) -> [u8; SECTOR_BYTES as usize] {
    let mut content = [0; SECTOR_BYTES as usize];
    if version != 0 {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&version.to_le_bytes());
        pair[8..].copy_from_slice(&sector.to_le_bytes());
        for part in content.chunks_exact_mut(16) {
            part.copy_from_slice(&pair);
        }
    }
    content
}

/// Returns the version of each sector; fails on other content.
pub fn versions_in(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let mut versions = Vec::with_capacity(bytes.len() / SECTOR_BYTES as usize);
    for (number, sector) in bytes.chunks_exact(SECTOR_BYTES as usize).enumerate() {
        let mut first = [0; 8];
        first.copy_from_slice(&sector[..8]);
        let version = u64::from_le_bytes(first);
        if *sector != sector_content(number as u64, version) {
            return Err(format!("sector {number} holds no version: {:02x?}…", &sector[..16]));
        }
        versions.push(version);
    }
    Ok(versions)
}
