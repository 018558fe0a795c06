//! Configuration of glibc's allocator for the large buffers of backups, restores and connections.

#![allow(unsafe_code, reason = "mallopt")]

/// Minimum size of an allocation with a mapping of its own, which is returned to the kernel when it is freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 1 << 20;
/// Extra memory that the allocator requests from the kernel for its first arena.
#[cfg(target_env = "gnu")]
const TOP_PAD_BYTES: libc::c_int = 0;

/// Maximum number of arenas. Memory that one thread allocates and another frees, such as frames of snapshots,
/// stays in its arena: with the default of eight per processor, 96 MiB of frames took 240 MiB (`VmRSS`, 2
/// processors), with four 160 MiB.
#[cfg(target_env = "gnu")]
const MAX_ARENAS: libc::c_int = 4;

/// Returns large buffers to the kernel when they are freed, and touches no memory in advance.
///
/// By default, glibc raises its mmap threshold after the first large buffer is freed and keeps up to 32 MiB
/// in each arena. Packs are built and encrypted on many threads, so that after some backups the daemon held
/// hundreds of megabytes, locked in memory. It also requests 128 KiB in advance in the first arena and zeroes
/// them for the next buffer, although the kernel has: each idle connection of a thread with that arena had
/// its whole receive buffer resident. Must be called before other threads exist.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TOP_PAD, TOP_PAD_BYTES),
        (libc::M_ARENA_MAX, MAX_ARENAS),
    ] {
        // SAFETY: `mallopt` sets a parameter of the allocator, takes no pointer, and no other thread runs
        // yet.
        let is_set = unsafe { libc::mallopt(parameter, bytes) } == 1;
        if !is_set {
            tracing::debug!(parameter, "setting an allocator parameter failed");
        }
    }
}
