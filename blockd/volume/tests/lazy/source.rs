//! Source in memory, and a lazy volume with its expected content.

use super::*;

/// Behaviour of a source, and its outstanding requests.
#[derive(Default)]
pub struct MemoryState {
    /// Requests wait for [`Memory::release`].
    pub is_held: bool,
    /// Requests fail with a retryable error.
    pub is_broken: bool,
    /// Blocks that fail permanently.
    pub bad: BlockSet,
    pub held: Vec<(Extent, FetchReply)>,
    /// Number of requests for waiting readers.
    pub for_readers: usize,
    pub time_limit: Option<Duration>,
    /// Scheduled timeout checks.
    pub wakes: Vec<Wake>,
}

pub type Wake = Box<dyn FnOnce() + Send>;

/// Source that counts the requests for each block.
pub struct Memory {
    pub data: Vec<u8>,
    pub state: Mutex<MemoryState>,
    pub changed: Condvar,
    /// Number of requests for each block.
    pub fetched: Vec<AtomicU64>,
    /// Each reply is sent by a separate thread.
    pub on_threads: bool,
}

impl Memory {
    pub fn new(seed: u64) -> Arc<Self> {
        Self::with(seed, false)
    }

    pub fn with(seed: u64, on_threads: bool) -> Arc<Self> {
        let mut rng = Rng::fixed(seed);
        let mut data = vec![0; SIZE_BYTES as usize];
        for (number, block) in data.chunks_exact_mut(BLOCK).enumerate() {
            // A third is zeroes: each fifth block, and blocks 2000 to 2499.
            if !number.is_multiple_of(5) && !(2000..2500).contains(&number) {
                block.fill(rng.next_u64() as u8 | 1);
            }
        }
        Arc::new(Self {
            data,
            state: Mutex::default(),
            changed: Condvar::new(),
            fetched: (0..BLOCKS).map(|_| AtomicU64::new(0)).collect(),
            on_threads,
        })
    }

    pub fn blocks(&self, extent: Extent) -> Vec<u8> {
        let from = extent.offset_bytes() as usize;
        self.data[from..from + extent.len_bytes() as usize].to_vec()
    }

    pub fn hold(&self) {
        self.state.lock().is_held = true;
    }

    /// Replies to all held requests.
    pub fn release(&self) {
        let held = {
            let mut state = self.state.lock();
            state.is_held = false;
            std::mem::take(&mut state.held)
        };
        for (extent, reply) in held {
            reply.complete(Ok(self.blocks(extent)));
        }
    }

    pub fn set_broken(&self, is_broken: bool) {
        self.state.lock().is_broken = is_broken;
    }

    /// Waits until this number of requests is held.
    pub fn wait_for_held(&self, count: usize) {
        let mut state = self.state.lock();
        while state.held.len() < count {
            assert!(!self.changed.wait_for(&mut state, TIMEOUT).timed_out(), "timeout without a request");
        }
    }

    pub fn fetched_blocks(&self) -> u64 {
        self.fetched.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl LazySource for Memory {
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply) {
        for block in extent.start.0..extent.end().0 {
            self.fetched[block as usize].fetch_add(1, Ordering::Relaxed);
        }
        let mut state = self.state.lock();
        state.for_readers += usize::from(urgency == Urgency::Reader);
        if state.is_broken {
            drop(state);
            return reply.complete(Err(SourceError::new("the store is unavailable", true)));
        }
        if state.is_held {
            state.held.push((extent, reply));
            self.changed.notify_all();
            return;
        }
        let lost = state.bad.slice(extent);
        drop(state);
        let data = self.blocks(extent);
        let answer = move || {
            if lost.is_empty() {
                return reply.complete(Ok(data));
            }
            for found in lost.gaps_in(extent) {
                let from = (found.offset_bytes() - extent.offset_bytes()) as usize;
                reply.sink().put(found.start, &data[from..from + found.len_bytes() as usize]).unwrap();
            }
            reply.end_incomplete(lost, SourceError::new("a frame is damaged", false));
        };
        match self.on_threads {
            true => drop(std::thread::spawn(answer)),
            false => answer(),
        }
    }

    fn time_limit(&self) -> Option<Duration> {
        self.state.lock().time_limit
    }

    fn wake_after(&self, _: Duration, wake: Wake) {
        self.state.lock().wakes.push(wake);
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        if self.state.lock().is_broken {
            return Err(SourceError::new("the store is unavailable", true));
        }
        // Only the long extent of zeroes is known.
        let mut set = BlockSet::from_iter([extent]);
        set.remove_extent(Extent::new(BlockIndex(2000), 500));
        Ok(set)
    }
}

pub struct Lazy {
    pub _root: tempfile::TempDir,
    pub dir: std::path::PathBuf,
    pub source: Arc<Memory>,
    pub volume: Arc<Volume>,
    /// Expected content of the volume.
    pub model: Vec<u8>,
}

impl Lazy {
    pub fn new(source: Arc<Memory>) -> Self {
        let (root, dir) = volume_dir();
        let volume = Volume::create_lazy(&dir, ID, SIZE_BYTES, source.clone()).unwrap();
        let model = source.data.clone();
        Self { _root: root, dir, source, volume, model }
    }

    /// Closes the volume and reopens it without its source.
    pub fn reopen(&mut self) {
        self.volume.close().unwrap();
        self.volume = open(&self.dir);
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.volume.write(offset as u64, data, false).unwrap();
        self.model[offset..offset + data.len()].copy_from_slice(data);
    }

    pub fn check(&self) {
        assert_reads(&self.volume, &self.model);
        let found = self.volume.check();
        assert_eq!(found.findings, Vec::<String>::new());
    }

    pub fn hydrate(&self) {
        while self.volume.hydrate_next().unwrap().is_some() {}
        assert!(self.volume.end_hydration().unwrap());
        assert_eq!(self.volume.hydration(), None);
    }
}
