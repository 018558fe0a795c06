//! Buffered sequential access to files, and checksums of what passes.

use crate::io::storage::File;
use std::io::{self, Read, Write};
use xxhash_rust::xxh3::Xxh3;

/// Length of a buffer. Up to this length, a file is written by one call.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// Writer at a position of a file.
pub(crate) struct FileWriter<'a> {
    file: &'a File,
    /// Position of the buffer.
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> FileWriter<'a> {
    pub(crate) fn new(file: &'a File, at: u64) -> Self {
        Self { file, at, buffer: Vec::new() }
    }

    /// Writes the rest of the buffer.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_buffer()
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for FileWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == BUFFER_BYTES {
            self.write_buffer()?;
        }
        let len = data.len().min(BUFFER_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&data[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reader of a range of a file.
pub(crate) struct FileReader<'a> {
    file: &'a File,
    /// Position after the buffer.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Length of the part of the buffer that was read.
    taken: usize,
    failure: Option<io::Error>,
}

impl<'a> FileReader<'a> {
    /// Reads from `at` up to `end`, which is not beyond the end of the file.
    pub(crate) fn new(file: &'a File, at: u64, end: u64) -> Self {
        assert!(at <= end, "a range ends after its start");
        Self { file, at, end, buffer: Vec::new(), taken: 0, failure: None }
    }

    /// Returns the error of a failed read, which callers of `Read` may have replaced.
    fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() && self.at < self.end {
            let len = (self.end - self.at).min(BUFFER_BYTES as u64) as usize;
            self.buffer.resize(len, 0);
            self.taken = 0;
            if let Err(error) = self.file.read_exact_at(&mut self.buffer, self.at) {
                self.buffer.clear();
                let kind = error.kind();
                self.failure = Some(error);
                return Err(kind.into());
            }
            self.at += len as u64;
        }
        let len = out.len().min(self.buffer.len() - self.taken);
        out[..len].copy_from_slice(&self.buffer[self.taken..self.taken + len]);
        self.taken += len;
        Ok(len)
    }
}

/// Writer that passes data on and hashes it.
pub(crate) struct HashingWriter<'a> {
    out: &'a mut dyn Write,
    hash: Xxh3,
}

impl<'a> HashingWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, hash: Xxh3) -> Self {
        Self { out, hash }
    }

    /// Returns the checksum of the data.
    pub(crate) fn sum(&self) -> u64 {
        self.hash.digest()
    }
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = self.out.write(data)?;
        self.hash.update(&data[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reader that hashes what it passes on.
struct HashingReader<'a, 'b> {
    input: &'a mut FileReader<'b>,
    hash: Xxh3,
}

impl Read for HashingReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(out)?;
        self.hash.update(&out[..len]);
        Ok(len)
    }
}

/// Decodes a range of a file; returns the result with the checksum of the range. The decoded bytes are the
/// hashed ones: a second read could return others.
///
/// # Errors
/// A read failed, even if `decode` took that for the end of the input.
pub(crate) fn decode_and_sum<T>(
    mut input: FileReader<'_>,
    hash: Xxh3,
    decode: impl FnOnce(&mut dyn Read) -> T,
) -> io::Result<(T, u64)> {
    let mut hashing = HashingReader { input: &mut input, hash };
    let decoded = decode(&mut hashing);
    // What a failed decoding left.
    let rest = io::copy(&mut hashing, &mut io::sink());
    let sum = hashing.hash.digest();
    match input.take_failure() {
        Some(error) => Err(error),
        None => rest.map(|_| (decoded, sum)),
    }
}

/// Reads of short slices of a file, through one buffer.
pub(crate) struct Window<'a> {
    file: &'a File,
    len_bytes: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Maximum length of a slice.
    pub(crate) const MAX_BYTES: usize = 1 << 20;

    pub(crate) fn new(file: &'a File, len_bytes: u64) -> Self {
        Self { file, len_bytes, start: 0, buffer: Vec::new() }
    }

    pub(crate) fn file(&self) -> &'a File {
        self.file
    }

    /// Returns the length of the file.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Returns up to `max` bytes from a position on: fewer only at the end of the file.
    pub(crate) fn slice(&mut self, at: u64, max: usize) -> io::Result<&[u8]> {
        assert!(max <= Self::MAX_BYTES, "a slice fits into the buffer");
        let len = self.len_bytes.saturating_sub(at).min(max as u64);
        let end = self.start + self.buffer.len() as u64;
        if at < self.start || at + len > end {
            let filled = self.len_bytes.saturating_sub(at).min(Self::MAX_BYTES as u64) as usize;
            self.buffer.resize(filled, 0);
            self.start = at;
            if let Err(error) = self.file.read_exact_at(&mut self.buffer, at) {
                self.buffer.clear();
                return Err(error);
            }
        }
        let first = (at - self.start) as usize;
        Ok(&self.buffer[first..first + len as usize])
    }
}
