//! Requests and bytes of operations before they are made.
//!
//! A backup compresses a sample of its frames, lays out the packs as the backup would, and makes the closing
//! requests against a store that sends no writes: their number and length are those of the real ones. A read
//! plans its requests from the indexes.

use crate::{
    CloudError, CompressionLevel, MemoryJournal, Repository, SnapshotReader,
    backup::{UploadOptions, job_of},
    backup_spec::BackupSpec,
    frame::{BLOCK, FrameWriter, MAX_STORED_LEN, MIN_STORED_LEN},
    index_writer::write_index,
    job::{Job, Recorder},
    pack::OBJECT_HEADER_LEN,
    packing::CHUNK_FRAMES,
    progress::Progress,
};
use blockd_extent::{BlockSource, Extent};
use blockd_store::{DryStore, MeterStore, RequestCounts, Requests, Work};
use std::sync::Arc;

/// Share of the frames that are sampled, between these numbers of frames: 64 and 512 MiB of blocks.
const SAMPLE_SHARE: u64 = 20;
const MIN_SAMPLE: u64 = 128;
const MAX_SAMPLE: u64 = 1024;

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
) -> Result<RequestCounts, CloudError> {
    let requests = Arc::new(Requests::default());
    let dry = Arc::new(DryStore::new(Arc::clone(repo.store())));
    let repo = repo.with_store(Arc::new(MeterStore::new(dry, requests.clone())));
    let recorder = Recorder::new(Arc::new(MemoryJournal::default()));
    let progress = Arc::new(Progress::new(requests.clone()));
    let job = Arc::new(job_of(&repo, spec, reader, recorder, options, progress).await?);
    let packs = job.estimate_packs().await?;
    let index = write_index(&job).await?;
    job.commit(&repo, index).await?;
    Ok(packs.plus(requests.snapshot()))
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

/// Returns the sampled frames: one of each of as many equal parts of all frames. The positions in the parts
/// are fixed, so that a repeated estimate is the same.
fn sample(frames: u64) -> Vec<u64> {
    let count = (frames / SAMPLE_SHARE).clamp(MIN_SAMPLE, MAX_SAMPLE).min(frames);
    let start = |part: u64| (u128::from(part) * u128::from(frames)).div_ceil(u128::from(count)) as u64;
    let within = |part: u64| {
        let mixed = (part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        start(part) + (mixed >> 32) % (start(part + 1) - start(part))
    };
    (0..count).map(within).collect()
}

impl Job {
    /// Records the estimated lengths of all frames; returns the requests that store the packs.
    async fn estimate_packs(self: &Arc<Self>) -> Result<RequestCounts, CloudError> {
        let sampled = sample(self.layout.frames);
        let (mut counts, mut lens) = (RequestCounts::default(), Vec::with_capacity(sampled.len()));
        let level = match self.layout.pack_count {
            0 => CompressionLevel::None,
            _ => self.levels.of_pack(0).await?,
        };
        let work = if self.reader.may_wait() { Work::default() } else { self.work.clone() };
        for frames in sampled.chunks(CHUNK_FRAMES) {
            let (job, frames) = (self.clone(), frames.to_vec());
            lens.extend(work.run(move || job.stored_lens(level, &frames)).await??);
        }
        let journal = self.recorder.journal();
        for pack_no in 0..self.layout.pack_count {
            let (first, end) = self.layout.pack_frames(pack_no);
            let sizes = self.layout.frame_sizes(pack_no);
            let of_frame = |(frame, blocks): (u64, usize)| {
                // The sampled frame of the same part, or one beside it.
                let part = u128::from(frame) * sampled.len() as u128 / u128::from(self.layout.frames);
                let (len, sampled_blocks) = lens[part as usize];
                let scaled = (u64::from(len) * blocks as u64 / sampled_blocks) as usize;
                if len == 0 { 0 } else { scaled.clamp(MIN_STORED_LEN, MAX_STORED_LEN) as u32 }
            };
            let pack: Vec<u32> = (first..end).zip(sizes).map(of_frame).collect();
            let stored: u64 = pack.iter().map(|len| u64::from(*len)).sum();
            if stored > 0 {
                counts.put += 1;
                counts.bytes_up += OBJECT_HEADER_LEN as u64 + stored;
            }
            journal.record(pack_no, level, &pack)?;
        }
        Ok(counts)
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
    fn sample_has_one_frame_of_each_part() {
        for frames in [0, 1, 127, 128, 129, 257, 5_000, 100_000, 1 << 28] {
            let sampled = sample(frames);
            assert!(sampled.is_sorted_by(|a, b| a < b) && sampled.iter().all(|frame| *frame < frames));
            assert!(sampled.len() as u64 >= frames.min(MIN_SAMPLE) && sampled.len() as u64 <= MAX_SAMPLE);
            let count = sampled.len() as u128;
            for (part, frame) in sampled.iter().enumerate() {
                assert_eq!(u128::from(*frame) * count / u128::from(frames), part as u128, "of {frames}");
            }
        }
    }
}
