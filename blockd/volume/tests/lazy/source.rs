//! Source of lazy volumes that holds its blocks in memory, and a volume with its expected content.

use super::*;

/// Behavior of a source.
#[derive(Default)]
pub struct Mood {
    pub is_held: bool,
    pub is_broken: bool,
    /// Blocks that it can never give.
    pub bad: BlockSet,
    pub held: Vec<(Extent, FetchReply)>,
    /// Number of requests for waiting readers.
    pub for_readers: usize,
    pub time_limit: Option<Duration>,
    /// Callbacks of expired readers.
    pub wakes: Vec<Wake>,
}

pub type Wake = Box<dyn FnOnce() + Send>;

/// Holds blocks in memory, and counts what it is asked for.
pub struct Memory {
    pub data: Vec<u8>,
    pub mood: Mutex<Mood>,
    pub changed: Condvar,
    pub fetched: Vec<AtomicU64>,
    pub on_threads: bool,
}

impl Memory {
    pub fn new(seed: u64) -> Arc<Self> {
        Self::with(seed, false)
    }

    pub fn with(seed: u64, on_threads: bool) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let mut data = vec![0; SIZE_BYTES as usize];
        for (number, block) in data.chunks_exact_mut(BLOCK).enumerate() {
            // A third is zeroes: single blocks, and all from 2000 to 2500.
            if !number.is_multiple_of(5) && !(2000..2500).contains(&number) {
                block.fill(rng.next_u64() as u8 | 1);
            }
        }
        Arc::new(Self {
            data,
            mood: Mutex::default(),
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
        self.mood.lock().is_held = true;
    }

    pub fn let_go(&self) {
        let held = {
            let mut mood = self.mood.lock();
            mood.is_held = false;
            std::mem::take(&mut mood.held)
        };
        for (extent, reply) in held {
            reply.complete(Ok(self.blocks(extent)));
        }
    }

    pub fn set_broken(&self, is_broken: bool) {
        self.mood.lock().is_broken = is_broken;
    }

    /// Waits until a reader waits for the source.
    pub fn wait_for_held(&self, count: usize) {
        let mut mood = self.mood.lock();
        while mood.held.len() < count {
            assert!(!self.changed.wait_for(&mut mood, TIMEOUT).timed_out(), "no request came");
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
        let mut mood = self.mood.lock();
        mood.for_readers += usize::from(urgency == Urgency::Reader);
        if mood.is_broken {
            drop(mood);
            return reply.complete(Err(SourceError::new("the store is gone", true)));
        }
        if mood.is_held {
            mood.held.push((extent, reply));
            self.changed.notify_all();
            return;
        }
        let lost = mood.bad.slice(extent);
        drop(mood);
        let data = self.blocks(extent);
        let answer = move || {
            if lost.is_empty() {
                return reply.complete(Ok(data));
            }
            for run in lost.gaps_in(extent) {
                let from = (run.offset_bytes() - extent.offset_bytes()) as usize;
                reply.sink().put(run.start, &data[from..from + run.len_bytes() as usize]).unwrap();
            }
            reply.end_without(lost, SourceError::new("a frame is damaged", false));
        };
        match self.on_threads {
            true => drop(std::thread::spawn(answer)),
            false => answer(),
        }
    }

    fn time_limit(&self) -> Option<Duration> {
        self.mood.lock().time_limit
    }

    fn wake_after(&self, _: Duration, wake: Wake) {
        self.mood.lock().wakes.push(wake);
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        if self.mood.lock().is_broken {
            return Err(SourceError::new("the store is gone", true));
        }
        // It knows of the long run of zeroes only.
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
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        let volume = Volume::create_lazy(&dir, ID, SIZE_BYTES, source.clone()).unwrap();
        let model = source.data.clone();
        Self { _root: root, dir, source, volume, model }
    }

    pub fn open(&mut self, source: Option<Arc<Memory>>) {
        self.volume = Volume::open(&self.dir, &OpenOptions::default()).unwrap();
        if let Some(source) = source {
            self.volume.set_lazy_source(source);
        }
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
