//! Codecs of frames, and their levels.
//!
//! Noise, such as encrypted or compressed files, is recognised by a sample of its bytes and stored as it is:
//! the higher levels of zstd search longest where they find nothing.

use blockd_store_config::{CompressionLevel, MAX_ZSTD_LEVEL};
use std::ops::RangeInclusive;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat, ResetDirective};

/// Every `SAMPLE_STRIDE` bytes of a frame the probe reads `SAMPLE_LEN` bytes.
const SAMPLE_STRIDE: usize = 1024;
const SAMPLE_LEN: usize = 64;

/// Shortest window of a zstd frame, in bytes.
const MIN_ZSTD_WINDOW: usize = 1024;
/// Flag in the first byte of a zstd frame without a window descriptor.
const IS_SINGLE_SEGMENT: u8 = 1 << 5;

/// Bytes in the middle of a frame whose share after lz4 tells what a longer search would gain.
const SHARE_SAMPLE_LEN: usize = 16 << 10;
/// Shares in percent from which and up to which a longer search gains most.
const SEARCHED_SHARES: RangeInclusive<usize> = 70..=85;

/// Parameters of zstd for a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZstdSearch {
    /// Level of the library.
    pub level: u8,
    /// Shortest match in bytes; 0 for that of the library.
    pub min_match: u32,
}

impl ZstdSearch {
    /// Returns the parameters of a level for a frame: a function of both only.
    ///
    /// Level 4 is level 6 for frames of medium compressibility, and level 3 for others: on files of an
    /// operating system it gains a quarter of what level 6 does over level 3, for a fifth of the additional
    /// CPU time. Level 4 of the library stores only 0.3 % less than level 3. Matches of 4 bytes instead of
    /// 5 store 0.6 to 1.5 % less for 5 to 11 % more CPU time.
    pub fn of(level: u8, frame: &[u8]) -> Self {
        let level = match level {
            4 if SEARCHED_SHARES.contains(&lz4_share_percent(frame)) => 6,
            4 => 3,
            level => level,
        };
        Self { level, min_match: if matches!(level, 3..=9) { 4 } else { 0 } }
    }
}

/// Returns the share of bytes in the middle of a frame that lz4 leaves, in percent.
fn lz4_share_percent(frame: &[u8]) -> usize {
    let len = frame.len().min(SHARE_SAMPLE_LEN);
    let start = (frame.len() - len) / 2;
    lz4_flex::block::compress(&frame[start..start + len]).len() * 100 / len.max(1)
}

/// Codec of a frame, and its byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Codec {
    Raw = 0,
    Lz4 = 1,
    Zstd = 2,
}

impl Codec {
    /// Returns the codec of a byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd].into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// Returns the number of a level in journals.
pub(crate) fn level_byte(level: CompressionLevel) -> u8 {
    match level {
        CompressionLevel::None => 0,
        CompressionLevel::Lz4 => 1,
        CompressionLevel::Zstd(level) => level.clamp(1, MAX_ZSTD_LEVEL) + 1,
    }
}

/// Returns the level of a number in a journal.
pub(crate) fn level_of_byte(byte: u8) -> Option<CompressionLevel> {
    match byte {
        0 => Some(CompressionLevel::None),
        1 => Some(CompressionLevel::Lz4),
        _ => Some(byte - 1).filter(|level| *level <= MAX_ZSTD_LEVEL).map(CompressionLevel::Zstd),
    }
}

/// Compressor with a reused context and buffer. Its output depends on the level and the data only.
#[derive(Default)]
pub(crate) struct Compressor {
    zstd: Option<CCtx<'static>>,
    lz4: Vec<u8>,
}

impl Compressor {
    /// Appends `data` to `out`, compressed if that is shorter; returns the codec.
    pub fn append(&mut self, level: CompressionLevel, data: &[u8], out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        let codec = match level {
            CompressionLevel::None => None,
            CompressionLevel::Lz4 => self.lz4(data).map(|packed| {
                out.extend_from_slice(packed);
                Codec::Lz4
            }),
            // Repeated noise is compressible: lz4 finds that, and costs little elsewhere.
            CompressionLevel::Zstd(_) if is_noise(data) && self.lz4(data).is_none() => None,
            CompressionLevel::Zstd(level) => self.append_zstd(level, data, out).then_some(Codec::Zstd),
        };
        let Some(codec) = codec else {
            out.truncate(start);
            out.extend_from_slice(data);
            return Codec::Raw;
        };
        debug_assert!(unpacks_to(codec, &out[start..], data), "{level} does not decompress to its data");
        codec
    }

    /// Returns `data` compressed with lz4; `None` if that is not shorter.
    fn lz4(&mut self, data: &[u8]) -> Option<&[u8]> {
        let max_len = lz4_flex::block::get_maximum_output_size(data.len());
        if self.lz4.len() < max_len {
            self.lz4.resize(max_len, 0);
        }
        let len = lz4_flex::block::compress_into(data, &mut self.lz4).ok()?;
        self.lz4.get(..len).filter(|packed| packed.len() < data.len())
    }

    fn append_zstd(&mut self, level: u8, data: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let Some(longest) = data.len().checked_sub(1) else { return false };
        let context = self.zstd.get_or_insert_with(CCtx::create);
        let search = ZstdSearch::of(level, data);
        // The length is known from the frame's head, the integrity is that of the sealed frame.
        let parameters = [
            CParameter::Format(FrameFormat::Magicless),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::CompressionLevel(search.level.into()),
            CParameter::MinMatch(search.min_match),
        ];
        // Data that did not fit leave the context in the middle of a frame.
        let is_set = context.reset(ResetDirective::SessionOnly).is_ok()
            && parameters.into_iter().all(|parameter| context.set_parameter(parameter).is_ok());
        debug_assert!(is_set, "libzstd refused the parameters of level {level}");
        out.resize(start + longest, 0);
        match context.compress2(&mut out[start..], data) {
            Ok(len) if is_set => {
                out.truncate(start + len);
                true
            }
            // The compressed data do not fit.
            _ => false,
        }
    }
}

/// Returns true if the bytes of a sample are distributed like noise.
///
/// Counts pairs of equal bytes: evenly distributed ones have one in 256 pairs, text more than four.
fn is_noise(data: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    let mut sampled = 0u64;
    for part in data.chunks(SAMPLE_STRIDE) {
        let sample = &part[..part.len().min(SAMPLE_LEN)];
        sampled += sample.len() as u64;
        sample.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    let equal_pairs: u64 = counts.iter().map(|count| count * count.saturating_sub(1)).sum();
    equal_pairs * 256 * 4 <= sampled * sampled.saturating_sub(1) * 5
}

/// Decompressor with a reused context.
#[derive(Default)]
pub(crate) struct Decompressor {
    zstd: Option<DCtx<'static>>,
}

impl Decompressor {
    /// Decompresses a payload that must fill `data`.
    ///
    /// # Errors
    /// A description of the damage.
    pub fn unpack(&mut self, codec: Codec, packed: &[u8], data: &mut [u8]) -> Result<(), &'static str> {
        let unpacked = match codec {
            Codec::Raw if packed.len() == data.len() => {
                data.copy_from_slice(packed);
                Some(data.len())
            }
            Codec::Raw => None,
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, data).ok(),
            Codec::Zstd => self.unpack_zstd(packed, data),
        };
        match unpacked {
            Some(len) if len == data.len() => Ok(()),
            _ => Err("the frame's payload does not decompress to its length"),
        }
    }

    fn unpack_zstd(&mut self, packed: &[u8], data: &mut [u8]) -> Option<usize> {
        if window_len(packed)? > data.len().next_power_of_two().max(MIN_ZSTD_WINDOW) {
            return None;
        }
        // In one pass into memory of the frame's length, so that zstd allocates no window.
        let context = self.zstd.get_or_insert_with(DCtx::create);
        context.set_parameter(DParameter::Format(FrameFormat::Magicless)).ok()?;
        context.decompress(data, packed).ok()
    }
}

/// Returns the length of the window that a zstd frame declares; 0 if its content is the window.
fn window_len(packed: &[u8]) -> Option<usize> {
    let (descriptor, window) = (*packed.first()?, *packed.get(1)?);
    if descriptor & IS_SINGLE_SEGMENT != 0 {
        return Some(0);
    }
    let base = MIN_ZSTD_WINDOW << (window >> 3);
    Some(base + base / 8 * usize::from(window & 7))
}

/// Returns true if a payload that is about to be sealed decompresses to its data.
fn unpacks_to(codec: Codec, packed: &[u8], data: &[u8]) -> bool {
    let mut unpacked = vec![0; data.len()];
    Decompressor::default().unpack(codec, packed, &mut unpacked).is_ok() && unpacked == data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LEVELS: [CompressionLevel; 7] = [
        CompressionLevel::None,
        CompressionLevel::Lz4,
        CompressionLevel::Zstd(1),
        CompressionLevel::Zstd(4),
        CompressionLevel::Zstd(6),
        CompressionLevel::Zstd(9),
        CompressionLevel::Zstd(19),
    ];

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x0123_4567_89ab_cdefu64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|i| format!("{i}: entry {} of the log\n", i * 7919 % 1000).into_bytes());
        lines.take(len).collect()
    }

    #[test]
    fn levels_have_different_bytes() {
        let all = [CompressionLevel::None, CompressionLevel::Lz4].into_iter();
        let all: Vec<_> = all.chain((1..=MAX_ZSTD_LEVEL).map(CompressionLevel::Zstd)).collect();
        assert!(all.iter().all(|level| level_of_byte(level_byte(*level)) == Some(*level)));
        assert_eq!(all.iter().map(|level| level_byte(*level)).collect::<BTreeSet<_>>().len(), all.len());
        assert!((all.len() as u8..=u8::MAX).all(|byte| level_of_byte(byte).is_none()));
    }

    #[test]
    fn noise_is_stored_raw_and_text_is_not() {
        for len in [4096, 3 * 4096, 512 << 10] {
            for level in LEVELS {
                let mut out = Vec::new();
                assert_eq!(Compressor::default().append(level, &noise(len), &mut out), Codec::Raw);
                assert_eq!(out, noise(len));
            }
            assert!(is_noise(&noise(len)) && !is_noise(&text(len)), "{len} bytes");
        }
        // Noise that returns, and a little text between noise.
        let repeated = noise(4096).repeat(8);
        let mixed = [noise(8 * 4096), text(4096)].concat();
        for data in [repeated, mixed] {
            let mut out = Vec::new();
            assert_eq!(Compressor::default().append(CompressionLevel::Zstd(1), &data, &mut out), Codec::Zstd);
        }
    }

    #[test]
    fn noise_that_its_sample_hides_is_stored_raw() {
        let mut hidden = noise(512 << 10);
        let in_sample = |(at, _): &(usize, &mut u8)| at % SAMPLE_STRIDE < SAMPLE_LEN;
        hidden.iter_mut().enumerate().filter(in_sample).for_each(|(_, byte)| *byte &= 0x7f);
        assert!(!is_noise(&hidden));
        let mut reused = Compressor::default();
        for level in LEVELS {
            let (mut out, mut after, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
            assert_eq!(reused.append(level, &hidden, &mut out), Codec::Raw, "{level}");
            assert_eq!(out, hidden);
            // Failed attempts do not change later frames.
            reused.append(level, &text(4096), &mut after);
            Compressor::default().append(level, &text(4096), &mut fresh);
            assert_eq!(after, fresh);
        }
    }

    #[test]
    fn higher_levels_store_less() {
        let len = |level| {
            let mut out = Vec::new();
            Compressor::default().append(level, &text(512 << 10), &mut out);
            out.len()
        };
        let lens = [LEVELS[0], LEVELS[1], LEVELS[2], LEVELS[6]].map(len);
        assert!(lens.is_sorted_by(|a, b| a > b), "{lens:?}");
    }

    #[test]
    fn level_4_searches_frames_of_medium_compressibility() {
        // Bytes of noise in each 4 KiB.
        let mixed = |noisy: usize, len: usize| -> Vec<u8> {
            let (noise, text) = (noise(len), text(len));
            let at = |at: usize| if at % 4096 < noisy { noise[at] } else { text[at] };
            (0..len).map(at).collect()
        };
        for len in [4096, 12 << 10, 512 << 10] {
            for (noisy, level) in [(0, 3), (1024, 3), (2400, 6), (4096, 3)] {
                let frame = mixed(noisy, len);
                let found = ZstdSearch::of(4, &frame);
                assert_eq!(found, ZstdSearch { level, min_match: 4 }, "{noisy} of {len}");
                let packed = |level| {
                    let mut out = Vec::new();
                    Compressor::default().append(CompressionLevel::Zstd(level), &frame, &mut out);
                    out
                };
                assert_eq!(packed(4), packed(level));
            }
        }
        assert_eq!(ZstdSearch::of(4, &[]).level, 3);
    }

    #[test]
    fn window_beyond_the_frame_is_refused() {
        // Flags of the frame, window, then kind and length of a block that repeats one byte.
        let frame = |flags: u8, window: u8, len: u32| {
            [&[flags, window][..], &((len << 3) | 3).to_le_bytes()[..3], b"a"].concat()
        };
        let mut unpacking = Decompressor::default();
        let mut unpack = |packed: &[u8]| {
            let mut data = vec![0; 4096];
            unpacking.unpack(Codec::Zstd, packed, &mut data).is_ok().then_some(data)
        };
        // 1 KiB and 4 KiB; then 4.5 KiB, 8 KiB, 128 KiB, 2 GiB and the largest.
        for window in [0, 2 << 3] {
            assert_eq!(unpack(&frame(0, window, 4096)), Some(vec![b'a'; 4096]), "{window}");
        }
        for window in [(2 << 3) | 1, 3 << 3, 7 << 3, 21 << 3, u8::MAX] {
            assert_eq!(unpack(&frame(0, window, 4096)), None, "{window}");
        }
        // Content beyond the frame, a shorter one, and a single segment of 255 bytes.
        for packed in [frame(0, 2 << 3, 4097), frame(0, 2 << 3, 4095), frame(IS_SINGLE_SEGMENT, 255, 4096)] {
            assert_eq!(unpack(&packed), None);
        }
        for len in 0..2 {
            assert_eq!(unpack(&frame(0, 0, 4096)[..len]), None);
        }
        assert!(unpacking.zstd.unwrap().sizeof() < 256 << 10);
    }

    #[test]
    fn declared_windows_are_those_of_the_format() {
        for blocks in [1, 2, 3, 5, 17, 31, 32] {
            for level in 1..=MAX_ZSTD_LEVEL {
                let (data, mut out) = (text(blocks * 4096), Vec::new());
                Compressor::default().append(CompressionLevel::Zstd(level), &data, &mut out);
                let window = window_len(&out).unwrap();
                assert!((MIN_ZSTD_WINDOW..=data.len().next_power_of_two()).contains(&window), "{window}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A resumed backup stores the same packs again.
        #[test]
        fn reused_contexts_do_not_change_the_output(
            data in prop::collection::vec((0u8..4, 1usize..5, 0..LEVELS.len()), 1..8)
        ) {
            let (mut reused, mut unpacking) = (Compressor::default(), Decompressor::default());
            for (kind, blocks, level) in data {
                let len = blocks * 4096;
                let data = match kind {
                    0 => noise(len),
                    1 => text(len),
                    2 => vec![7; len],
                    _ => [text(len / 2), noise(len / 2)].concat(),
                };
                let (mut first, mut second) = (b"head".to_vec(), b"head".to_vec());
                let codec = reused.append(LEVELS[level], &data, &mut first);
                prop_assert_eq!(codec, Compressor::default().append(LEVELS[level], &data, &mut second));
                prop_assert_eq!(&first, &second);
                prop_assert!(first.len() <= 4 + len);
                let mut unpacked = vec![0xee; len];
                prop_assert_eq!(unpacking.unpack(codec, &first[4..], &mut unpacked), Ok(()));
                prop_assert_eq!(unpacked, data);
                // Neither shorter nor longer.
                for wrong in [len - 1, len + 1] {
                    prop_assert!(unpacking.unpack(codec, &first[4..], &mut vec![0; wrong]).is_err());
                }
            }
        }

        #[test]
        fn malformed_payloads_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300), flip: usize) {
            let mut unpacking = Decompressor::default();
            let mut data = vec![0; 4096];
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                let _ = unpacking.unpack(codec, &bytes, &mut data);
            }
            for level in [CompressionLevel::Lz4, CompressionLevel::Zstd(3)] {
                let mut packed = Vec::new();
                let codec = Compressor::default().append(level, &text(4096), &mut packed);
                let bit = flip % (packed.len() * 8);
                packed[bit / 8] ^= 1 << (bit % 8);
                let _ = unpacking.unpack(codec, &packed, &mut data);
                prop_assert!(unpacking.unpack(codec, &packed[..packed.len() / 2], &mut data).is_err());
                // The context is usable after an error.
                packed[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(unpacking.unpack(codec, &packed, &mut data), Ok(()));
            }
        }
    }
}
