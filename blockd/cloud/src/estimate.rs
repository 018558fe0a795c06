//! Requests and bytes of operations before they are made.
//!
//! A backup compresses a sample of its frames, lays out the packs as the backup would, and makes the closing
//! requests against a store that sends no writes: their number and length are those of the real ones. A read
//! plans its requests from the indexes.

use crate::{
    BackupJournal, CloudError, CloudSnapshotId, CompressionLevel, Repository, SnapshotReader,
    backup::{UploadOptions, job_of},
    backup_spec::BackupSpec,
    frame::{BLOCK, FrameWriter, MAX_STORED_LEN, MIN_STORED_LEN},
    index_writer::write_index,
    job::{Job, Recorder},
    pack::OBJECT_HEADER_LEN,
    packing::CHUNK_FRAMES,
    plan::Layout,
    progress::Progress,
    repository::run_blocking,
};
use blockd_extent::{BlockSource, Extent};
use blockd_store::{DryStore, MeterStore, RequestCounts, Requests, Work};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// Share of the frames in the first sample, between these numbers of frames: 64 and 512 MiB of blocks.
const SAMPLE_SHARE: u64 = 20;
const MIN_SAMPLE: u64 = 128;
const MAX_FIRST_SAMPLE: u64 = 1024;
/// The sample is doubled until the standard error of the stored bytes is below this share of them, or it has
/// this number of frames, 8 GiB of blocks, or this time has passed.
const MAX_ERROR: f64 = 0.02;
const MAX_SAMPLE: u64 = 16 * MAX_FIRST_SAMPLE;
const MAX_TIME: Duration = Duration::from_secs(20);

/// Estimate of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackupEstimate {
    /// Requests.
    pub requests: RequestCounts,
    /// Uncertainty (±) of the uploaded bytes in percent, at a confidence of 95 %.
    pub uncertainty_percent: u32,
    /// The base, or another snapshot with its sources, was deleted, which the backup finds after these
    /// requests.
    pub deleted: Option<CloudSnapshotId>,
}

/// Returns the requests of a backup that [`backup`](crate::backup) would make, without storing anything. A
/// backup of up to 128 frames, 64 MiB, is compressed whole; of others, frames that are spread evenly.
///
/// # Errors
/// [`CloudError::InvalidRequest`]; [`CloudError::ReadVolume`]; errors of the store.
pub async fn estimate_backup(
    repo: &Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    options: &UploadOptions,
) -> Result<BackupEstimate, CloudError> {
    let requests = Arc::new(Requests::default());
    let dry = Arc::new(DryStore::new(Arc::clone(repo.store()), 1));
    let repo = repo.with_store(Arc::new(MeterStore::new(dry, requests.clone())));
    let journal = Arc::new(EstimateJournal::default());
    let recorder = Recorder::new(journal.clone());
    let progress = Arc::new(Progress::new(requests.clone()));
    let job = Arc::new(job_of(&repo, spec, reader, recorder, options, progress).await?);
    let (packs, uncertainty_percent) = job.estimate_packs(&journal).await?;
    let index = write_index(&job).await?;
    let deleted = match job.commit(&repo, index).await {
        Ok(_) => None,
        Err(CloudError::NeededDeleted { needed }) => Some(needed),
        Err(error) => return Err(error),
    };
    Ok(BackupEstimate { requests: packs.plus(requests.snapshot()), uncertainty_percent, deleted })
}

/// Returns the requests for the data of extents that are read one after the other. Reads only indexes.
///
/// # Errors
/// [`CloudError::Damaged`]; errors of the store.
pub async fn estimate_read(
    reader: &SnapshotReader,
    extents: impl IntoIterator<Item = Extent>,
) -> Result<RequestCounts, CloudError> {
    let mut counts = RequestCounts::default();
    for extent in extents {
        let plan = reader.planned_in_bulk(extent).await?;
        counts.get += plan.requests;
        counts.bytes_down += plan.bytes;
    }
    Ok(counts)
}

/// Returns one frame of each of `count` equal parts of all frames. The positions in the parts are fixed, so
/// that a repeated estimate is the same.
fn sample(frames: u64, count: u64) -> impl Iterator<Item = (Range<u64>, u64)> {
    let start = move |part: u64| (u128::from(part) * u128::from(frames)).div_ceil(u128::from(count)) as u64;
    (0..count).map(move |part| {
        let (start, end) = (start(part), start(part + 1));
        (start..end, start + (mixed(part) >> 32) % (end - start))
    })
}

/// Returns a number whose bits depend on all bits of the given one.
fn mixed(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Returns the standard error of the sum of all frames as a share of it. The differences of neighbours count:
/// frames beside each other are alike, and there is one of each part.
fn standard_error(lens: &[(u32, u64)], frames: u64) -> f64 {
    let count = lens.len() as f64;
    let sum: f64 = lens.iter().map(|(len, _)| f64::from(*len)).sum();
    if lens.len() as u64 >= frames || lens.len() < 2 || sum == 0.0 {
        return 0.0;
    }
    let differences = lens.windows(2).map(|two| f64::from(two[1].0) - f64::from(two[0].0));
    let variance = differences.map(|difference| difference * difference).sum::<f64>() / (2.0 * (count - 1.0));
    (variance * count * (1.0 - count / frames as f64)).sqrt() / sum
}

/// Estimated lengths of all frames of a backup, computed for each pack: those of 64 TiB would take 512 MiB.
struct Extrapolation {
    layout: Arc<Layout>,
    level: CompressionLevel,
    /// Stored lengths of the sampled frames, and their numbers of blocks.
    sampled: Vec<(u32, u64)>,
    /// Lengths of packs that have data although the sample has only zeroes of them.
    with_data: BTreeMap<u32, Arc<[u32]>>,
}

impl Extrapolation {
    /// Returns the lengths of the frames of a pack: those of the sampled frame of the same part.
    fn pack(&self, pack_no: u32) -> Vec<u32> {
        let (first, end) = self.layout.pack_frames(pack_no);
        if let Some(lens) = self.with_data.get(&pack_no) {
            return lens.iter().copied().chain(std::iter::repeat(0)).take((end - first) as usize).collect();
        }
        let of_frame = |(frame, blocks): (u64, usize)| {
            // No overflow: a sample has at most 2^14 frames.
            let part = frame * self.sampled.len() as u64 / self.layout.frames;
            let (len, sampled_blocks) = self.sampled[part as usize];
            let scaled = (u64::from(len) * blocks as u64 / sampled_blocks) as usize;
            if len == 0 { 0 } else { scaled.clamp(MIN_STORED_LEN, MAX_STORED_LEN) as u32 }
        };
        (first..end).zip(self.layout.frame_sizes(pack_no)).map(of_frame).collect()
    }

    fn stored_bytes(&self, pack_no: u32) -> u64 {
        self.pack(pack_no).iter().map(|len| u64::from(*len)).sum()
    }

    /// Returns the packs of zeroes.
    fn zero_packs(&self) -> Vec<u32> {
        (0..self.layout.pack_count).filter(|pack_no| self.stored_bytes(*pack_no) == 0).collect()
    }

    /// Returns the requests that store the packs.
    fn counts(&self) -> RequestCounts {
        let mut counts = RequestCounts::default();
        for stored in (0..self.layout.pack_count).map(|pack_no| self.stored_bytes(pack_no)) {
            if stored > 0 {
                counts.put += 1;
                counts.bytes_up += OBJECT_HEADER_LEN as u64 + stored;
            }
        }
        counts
    }
}

/// Journal with the estimated packs, once they are known.
#[derive(Default)]
struct EstimateJournal(OnceLock<Extrapolation>);

impl BackupJournal for EstimateJournal {
    fn completed(&self) -> Vec<u32> {
        Vec::new()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        Ok(self.0.get().map(|found| found.pack(pack_no)))
    }

    fn level(&self, _: u32) -> Option<CompressionLevel> {
        self.0.get().map(|found| found.level)
    }

    fn record_level(&self, _: u32, _: CompressionLevel) -> Result<(), CloudError> {
        Ok(())
    }

    fn record(&self, _: u32, _: CompressionLevel, _: &[u32]) -> Result<(), CloudError> {
        Ok(())
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        Ok(())
    }

    fn may_be_committed(&self) -> bool {
        false
    }
}

impl Job {
    /// Sets the estimated lengths of all frames; returns the requests that store the packs, and the
    /// uncertainty of their bytes in percent.
    async fn estimate_packs(
        self: &Arc<Self>,
        journal: &EstimateJournal,
    ) -> Result<(RequestCounts, u32), CloudError> {
        let level = match self.layout.pack_count {
            0 => CompressionLevel::None,
            _ => self.levels.of_pack(0).await?,
        };
        let (sampled, error) = self.sampled(level).await?;
        let layout = Arc::clone(&self.layout);
        let found = Extrapolation { layout, level, sampled, with_data: BTreeMap::new() };
        let (found, unread) = self.find_data(found).await?;
        let (found, counts) = run_blocking(move || {
            let counts = found.counts();
            Ok((found, counts))
        })
        .await?;
        let is_first = journal.0.set(found).is_ok();
        debug_assert!(is_first, "a backup is estimated once");
        let unread = unread as f64 / counts.put.max(1) as f64;
        Ok((counts, (100.0 * unread.max(2.0 * error)).ceil() as u32))
    }

    /// Returns the stored lengths of the frames of a sample, and the error of the sum of all.
    async fn sampled(
        self: &Arc<Self>,
        level: CompressionLevel,
    ) -> Result<(Vec<(u32, u64)>, f64), CloudError> {
        let (frames, began) = (self.layout.frames, Instant::now());
        let mut measured: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        let mut count = (frames / SAMPLE_SHARE).clamp(MIN_SAMPLE, MAX_FIRST_SAMPLE).min(frames);
        loop {
            let is_new = |part: &Range<u64>| measured.range(part.clone()).next().is_none();
            let new = sample(frames, count).filter(|(part, _)| is_new(part)).map(|(_, frame)| frame);
            for some in new.collect::<Vec<_>>().chunks(CHUNK_FRAMES) {
                measured.extend(some.iter().copied().zip(self.measured(level, some.to_vec()).await?));
            }
            let lens: Vec<_> = measured.values().copied().collect();
            let error = standard_error(&lens, frames);
            // A step that does not double the parts would leave two sampled frames in some.
            let is_largest = count == frames || count * 2 > MAX_SAMPLE;
            if error <= MAX_ERROR || is_largest || began.elapsed() > MAX_TIME {
                return Ok((lens, error));
            }
            count = (count * 2).min(frames);
        }
    }

    /// Finds the packs that have data although the sample has only zeroes of them: each one is an object.
    /// Also returns the number of those that were not read.
    async fn find_data(self: &Arc<Self>, found: Extrapolation) -> Result<(Extrapolation, usize), CloudError> {
        if found.sampled.len() as u64 == self.layout.frames {
            return Ok((found, 0));
        }
        let (mut found, mut packs) = run_blocking(move || {
            let packs = found.zero_packs();
            Ok((found, packs))
        })
        .await?;
        // If not all can be read, those that are read are spread evenly.
        packs.sort_unstable_by_key(|pack_no| mixed(u64::from(*pack_no)));
        let (began, mut read) = (Instant::now(), 0);
        for (at, &pack_no) in packs.iter().enumerate() {
            if read >= MAX_SAMPLE || began.elapsed() > MAX_TIME {
                let rest = &packs[at..];
                let expected = rest.len() * found.with_data.len() / at.max(1);
                let lens: Vec<_> = found.with_data.values().cloned().collect();
                found.with_data.extend(rest.iter().copied().zip(lens.into_iter().cycle()).take(expected));
                return Ok((found, rest.len()));
            }
            let (first, end) = self.layout.pack_frames(pack_no);
            let mut lens: Vec<u32> = Vec::with_capacity((end - first) as usize);
            for some in (first..end).collect::<Vec<_>>().chunks(CHUNK_FRAMES) {
                lens.extend(self.measured(found.level, some.to_vec()).await?.iter().map(|(len, _)| len));
            }
            read += lens.len() as u64;
            if lens.iter().any(|len| *len > 0) {
                found.with_data.insert(pack_no, lens.into());
            }
        }
        Ok((found, 0))
    }

    /// Returns the stored lengths of a few frames, and their numbers of blocks.
    async fn measured(
        self: &Arc<Self>,
        level: CompressionLevel,
        frames: Vec<u64>,
    ) -> Result<Vec<(u32, u64)>, CloudError> {
        let job = Arc::clone(self);
        let work = if self.reader.may_wait() { Work::default() } else { self.work.clone() };
        work.run(move || job.stored_lens(level, &frames)).await?
    }

    /// Returns the stored lengths of frames, and their numbers of blocks.
    fn stored_lens(&self, level: CompressionLevel, frames: &[u64]) -> Result<Vec<(u32, u64)>, CloudError> {
        let extents: Vec<Vec<Extent>> = frames
            .iter()
            .map(|frame| self.layout.frame_extents(&self.spec.data, *frame, frame + 1))
            .collect();
        let blocks = |extents: &[Extent]| extents.iter().map(|extent| extent.len_blocks).sum::<u64>();
        let sizes: Vec<u64> = extents.iter().map(|extents| blocks(extents)).collect();
        let mut raw = vec![0; sizes.iter().sum::<u64>() as usize * BLOCK];
        self.reader.read_extents(&extents.concat(), &mut raw).map_err(|source| CloudError::ReadVolume {
            pack_no: 0,
            extents: format!("{} sampled frames", frames.len()),
            source,
        })?;
        let (mut writer, mut out, mut rest) = (FrameWriter::default(), Vec::new(), raw.as_slice());
        let mut lens = Vec::with_capacity(frames.len());
        for (frame, size) in frames.iter().zip(sizes) {
            let (one, after) = rest.split_at(size as usize * BLOCK);
            out.clear();
            lens.push((writer.append(&self.sealer, level, *frame, one, &mut out), size));
            rest = after;
        }
        Ok(lens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_alike_neighbours_is_small_and_of_all_frames_zero() {
        let mixed = |len: u32| [(1000, 128), (len, 128)].repeat(500);
        assert_eq!(standard_error(&mixed(500_000), 1000), 0.0);
        let scattered = standard_error(&mixed(500_000), 100_000);
        assert!((0.02..0.05).contains(&scattered), "{scattered}");
        let mut stretches = mixed(500_000);
        stretches.sort_unstable();
        assert!(standard_error(&stretches, 100_000) < scattered / 10.0);
        assert!(standard_error(&mixed(1001), 100_000) < 0.001);
    }

    #[test]
    fn sample_has_one_frame_of_each_part() {
        for frames in [0, 1, 127, 128, 129, 257, 5_000, 100_000, 1 << 28] {
            for count in [1, 100, 128, 5_000].map(|count| frames.min(count)) {
                let sampled: Vec<_> = sample(frames, count).collect();
                let mut end = 0;
                for (at, (part, frame)) in sampled.iter().enumerate() {
                    assert!(part.start == end && part.contains(frame), "of {frames}");
                    assert_eq!(u128::from(*frame) * u128::from(count) / u128::from(frames), at as u128);
                    end = part.end;
                }
                assert_eq!((sampled.len() as u64, end), (count, frames));
            }
        }
    }
}
