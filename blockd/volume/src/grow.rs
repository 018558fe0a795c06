//! Growing a volume while it is in use.
//!
//! Everything about a head has its size: data files, map, log. So a growth is a freeze without a snapshot,
//! whose new head is longer: the commit of that head is the commit of the new size, writers pass the same
//! barrier, and the layers below stay as long as they are, because none of them holds a block beyond its end.

use crate::{
    error::{VolumeError, VolumeErrorKind},
    meta::check_size,
    volume::Volume,
};

impl Volume {
    /// Makes the volume longer; what is new reads as zeroes. When the call returns, the new size survives a
    /// power cut. Reads and writes go on meanwhile. Snapshots keep the size that the volume had when they
    /// were made.
    ///
    /// A call that fails may have made the volume longer all the same, if the disk failed: ask
    /// [`size_bytes`](Self::size_bytes).
    ///
    /// # Errors
    /// If the size is smaller than the present one, or no multiple of 4096 up to 64 TiB; the volume is closed
    /// or has failed; or the disk is full or fails.
    pub fn grow(&self, new_size_bytes: u64) -> Result<(), VolumeError> {
        check_size(new_size_bytes).map_err(VolumeError::InvalidInput)?;
        let mut admin = self.admin.lock();
        self.check_usable()?;
        let old_size_bytes = self.size_bytes();
        if new_size_bytes < old_size_bytes {
            return Err(VolumeError::InvalidInput(format!(
                "volume {} has {old_size_bytes} bytes and cannot shrink to {new_size_bytes}",
                self.id
            )));
        }
        if new_size_bytes == old_size_bytes {
            // The commit of a growth that failed may stand: it must not make the volume longer after this
            // answer.
            return self.settle(&admin);
        }
        self.finish_open_layers(&mut admin)?;
        let new_head = self.prepare_head(&mut admin, new_size_bytes)?;
        let (old_head, _) = self.begin_epoch(new_head);
        match self.finish_open_layer(&mut admin, &old_head, None) {
            // The volume has its new size. An old head that stays open is frozen by the next freeze, growth
            // or start.
            Err(error) if error.kind() == VolumeErrorKind::NoSpace && self.failure().is_none() => {
                tracing::warn!(volume = %self.id, %error, "the head of before the growth is not frozen yet");
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}
