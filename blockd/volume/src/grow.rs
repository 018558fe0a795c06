//! Online growth of a volume.
//!
//! Data files, map and log of a head have the size of the volume. So growth is a freeze without a snapshot,
//! with a larger head: the commit of that head commits the new size, and writers pass the same barrier. Lower
//! layers keep their sizes, because none holds a block beyond its end.

use crate::{
    error::{VolumeError, VolumeErrorKind},
    meta::check_size,
    volume::Volume,
};

impl Volume {
    /// Grows the volume; the new part reads as zeroes. The new size is durable when the call returns. Reads
    /// and writes continue. Snapshots keep their sizes.
    ///
    /// After a disk error the volume may have grown: check [`size_bytes`](Self::size_bytes).
    ///
    /// # Errors
    /// The size is smaller than the current one, or not a multiple of 4096 up to 64 TiB; the volume is closed
    /// or has failed; or the disk is full or fails.
    pub fn grow(&self, new_size_bytes: u64) -> Result<(), VolumeError> {
        check_size(new_size_bytes).map_err(VolumeError::InvalidInput)?;
        let mut admin = self.admin.lock();
        self.check_usable()?;
        let old_size_bytes = self.size_bytes();
        if new_size_bytes < old_size_bytes {
            return Err(VolumeError::InvalidInput(format!(
                "grow failed on volume {}: new size of {new_size_bytes} bytes is below the current {old_size_bytes}",
                self.id
            )));
        }
        if new_size_bytes == old_size_bytes {
            // The commit of a failed growth may be on disk and must not take effect after this reply.
            return self.settle(&admin);
        }
        self.finish_open_layers(&mut admin)?;
        let new_head = self.prepare_head(&mut admin, new_size_bytes)?;
        let (old_head, _) = self.begin_epoch(new_head);
        assert!(self.size_bytes() == new_size_bytes, "the new head has the new size");
        match self.finish_open_layer(&mut admin, &old_head, None) {
            // The volume has its new size. The next freeze, growth or start freezes the old head.
            Err(error) if error.kind() == VolumeErrorKind::NoSpace && self.failure().is_none() => {
                tracing::warn!(volume = %self.id, %error, "freeze failed on the previous head after growth: will be retried");
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}
