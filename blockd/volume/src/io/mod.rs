//! Files of a volume: names, system calls, concurrent reads, flushes, and the disk space reserve.

pub(crate) mod closer;
pub(crate) mod files;
pub(crate) mod flusher;
pub(crate) mod record;
pub(crate) mod reserve;
pub(crate) mod ring_reader;
pub(crate) mod storage;
pub(crate) mod stream;
