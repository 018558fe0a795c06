//! What the allocator does with the large buffers of backups and restores.

/// From this size on memory is taken from the kernel piece by piece, and given back as soon as it is let go.
#[cfg(target_env = "gnu")]
const MAPPED_FROM_BYTES: libc::c_int = 1 << 20;

/// Has large buffers given back to the kernel when they are let go.
///
/// Left alone, glibc's allocator learns from the first large buffer that is freed to keep up to 32 MiB of such memory for each
/// of its arenas. Packs are built and sealed on many threads, so a daemon that had made some backups held hundreds of
/// megabytes for good, and locked in memory at that. Must be called before other threads are there.
pub fn give_large_buffers_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it sets a parameter of the allocator, takes no pointer, and no other thread runs yet.
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) } == 1;
        if !is_set {
            tracing::debug!("the allocator keeps its own threshold for large buffers");
        }
    }
}
