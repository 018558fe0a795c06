//! Unix sockets of the daemon.

use crate::error::{DaemonError, MAX_SOCKET_PATH_BYTES, file_error};
use std::{os::unix::fs::FileTypeExt, path::Path};

pub(crate) fn check_socket_path(path: &Path) -> Result<(), DaemonError> {
    let len_bytes = path.as_os_str().len();
    if len_bytes > MAX_SOCKET_PATH_BYTES {
        return Err(DaemonError::SocketPath { path: path.to_owned(), len_bytes });
    }
    Ok(())
}

/// Removes a stale socket; any other file at the path is kept.
pub(crate) fn remove_socket(path: &Path) -> Result<(), DaemonError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(file_error("remove", path))
        }
        _ => Ok(()),
    }
}
