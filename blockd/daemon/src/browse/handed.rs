//! Mounts that users of this host make themselves and hand over: this process needs no right to mount, and
//! they appear where their users are.

use super::listing::BrowseCatalog;
use crate::{
    core::Core,
    error::ServiceError,
    http::{Foreign, caller::User},
};
use blockd_api::{
    CredentialRef, ErrorCode,
    browse::{BrowseMount, HandMount},
};
use blockd_fuse::{FuseError, HandedMount, MountOptions, Served};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};
use tokio::runtime::Handle;

/// The longest path of a mount, in bytes.
const MAX_PATH_LEN: usize = 4096;

/// A mount that was handed over.
pub(super) struct Handed {
    served: Served,
    credentials: Vec<CredentialRef>,
    since: Timestamp,
}

impl Handed {
    pub fn describe(&self) -> BrowseMount {
        let mount = self.served.mount();
        BrowseMount {
            mountpoint: mount.mountpoint.clone(),
            cred_ids: self.credentials.clone(),
            since: self.since,
            uid: Some(mount.uid),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.served.is_alive()
    }

    /// Where it is, if a start of the daemon could take it away that finds it dead: no path that another user
    /// chose is looked at.
    pub fn to_note(&self) -> Option<&Path> {
        (self.is_alive() && self.served.is_own()).then_some(&self.served.mount().mountpoint)
    }

    /// The daemon stops: what its own user made goes with it. Others take theirs away themselves.
    pub fn stop(&self) {
        self.served.take_away_own();
    }

    pub fn is_at(&self, mountpoint: &Path) -> bool {
        self.served.mount().mountpoint == mountpoint
    }

    pub fn uid(&self) -> u32 {
        self.served.mount().uid
    }
}

/// Refuses a path that is none, or that would not be shown as it is.
fn check_path(mountpoint: &Path) -> Result<(), ServiceError> {
    let is_plain = |text: &str| text.len() <= MAX_PATH_LEN && !text.chars().any(char::is_control);
    match mountpoint.is_absolute() && mountpoint.to_str().is_some_and(is_plain) {
        true => Ok(()),
        false => Err(ServiceError::refused(
            ErrorCode::InvalidRequest,
            "where the mount is must be an absolute path without control characters",
        )),
    }
}

impl Core {
    /// Serves a mount that a user of this host made. Blocks.
    ///
    /// # Errors
    /// The descriptor is not that of a mount that waits to be served, a credential is unknown, or there are
    /// too many mounts.
    pub(crate) fn serve_handed(
        self: &Arc<Self>,
        request: HandMount,
        descriptor: Foreign,
        user: Option<User>,
    ) -> Result<BrowseMount, ServiceError> {
        check_path(&request.mountpoint)?;
        // Before anything else is done with it: what is none may be a file of a filesystem that answers
        // nothing.
        descriptor.as_fd().map_or(Err(FuseError::NotFuse), blockd_fuse::check_handed)?;
        let descriptor = descriptor.into_owned().ok_or(FuseError::NotFuse)?;
        let Some(User { uid, gid }) = user else {
            return Err(ServiceError::Internal(
                "the kernel does not say who hands the mount over".to_owned(),
            ));
        };
        let runtime = Handle::current();
        for wanted in &request.cred_ids {
            runtime.block_on(self.credential(Some(wanted)))?;
        }
        let mounts = &self.browse.mounts;
        if mounts.handed.lock().is_none() {
            return Err(ServiceError::Stopping);
        }
        let Some(place) = mounts.places.take(uid) else {
            let message = "too many mounts are served: take one away first (blockctl browse umount)";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        };
        let catalog = Arc::new(BrowseCatalog::new(self, request.cred_ids.clone(), runtime));
        let mount = HandedMount { mountpoint: request.mountpoint, uid, gid };
        let shown = mount.mountpoint.display().to_string();
        let on_end = move || {
            drop(place);
            tracing::info!(mountpoint = shown, uid, "a mount that was handed over is not served any more");
        };
        let options = MountOptions { allow_other: request.allow_other, ..MountOptions::default() };
        let served = blockd_fuse::serve_handed(catalog, descriptor, mount, options, on_end)?;
        tracing::info!(mountpoint = %served.mount().mountpoint.display(), uid, "a mount was handed over");
        let handed = Handed { served, credentials: request.cred_ids, since: Timestamp::now() };
        let reply = handed.describe();
        {
            let mut all = mounts.handed.lock();
            let Some(all) = &mut *all else { return Err(ServiceError::Stopping) };
            all.retain(Handed::is_alive);
            all.push(handed);
        }
        mounts.note(self);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_as_they_are_or_refused() {
        let long = format!("/{}", "x".repeat(MAX_PATH_LEN));
        for (path, is_good) in
            [("/home/a/ä b", true), ("a", false), ("/a\nb", false), ("/\u{1b}[2J", false), (&long, false)]
        {
            assert_eq!(check_path(Path::new(path)).is_ok(), is_good, "{path:?}");
        }
    }
}
