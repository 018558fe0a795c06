//! What the allocator does with the large buffers of backups and restores, and with those of connections.

/// From this size on memory is taken from the kernel piece by piece, and given back as soon as it is let go.
#[cfg(target_env = "gnu")]
const MAPPED_FROM_BYTES: libc::c_int = 1 << 20;
/// How much more than it needs the allocator takes from the kernel for its first arena.
#[cfg(target_env = "gnu")]
const TAKEN_AHEAD_BYTES: libc::c_int = 0;

/// How many arenas the allocator has at most. Memory that one thread takes and another gives back, as frames
/// of snapshots are, stays in its arena: with eight for each processor, 96 MiB of frames took 240 (`VmRSS`, 2
/// processors), with four 160.
#[cfg(target_env = "gnu")]
const MAX_ARENAS: libc::c_int = 4;

/// Has large buffers given back to the kernel when they are let go, and no memory touched before it is used.
///
/// Left alone, glibc's allocator learns from the first large buffer that is freed to keep up to 32 MiB of
/// such memory for each of its arenas. Packs are built and sealed on many threads, so a daemon that had made
/// some backups held hundreds of megabytes for good, and locked in memory at that. It also takes 128 KiB
/// ahead in its first arena, and zeroes them for the next buffer, though the kernel has: each idle connection
/// of a thread that happens to use that arena took all of its receive buffer. Must be called before other
/// threads are there.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
        (libc::M_TOP_PAD, TAKEN_AHEAD_BYTES),
        (libc::M_ARENA_MAX, MAX_ARENAS),
    ] {
        // SAFETY: it sets a parameter of the allocator, takes no pointer, and no other thread runs yet.
        let is_set = unsafe { libc::mallopt(parameter, bytes) } == 1;
        if !is_set {
            tracing::debug!(parameter, "the allocator keeps its own setting");
        }
    }
}
