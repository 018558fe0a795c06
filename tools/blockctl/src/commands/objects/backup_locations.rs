//! Locations of the backups of a name.

use blockd_api::{ApiError, CredentialName, ErrorCode, cloudsnaps::Cloudsnap, tasks::Task};
use std::collections::BTreeSet;

/// Returns the locations of backups and of interrupted ones.
pub fn locations<'a>(found: &[&'a Cloudsnap], tasks: &[&'a Task]) -> BTreeSet<&'a str> {
    let of_tasks = tasks.iter().filter_map(|task| task.credential_name.as_ref());
    let found = found.iter().map(|one| one.credential_name.as_str());
    found.chain(of_tasks.map(CredentialName::as_str)).collect()
}

/// Refuses to delete the backups of an object in several locations: a repetition would delete the next copy.
pub fn refuse_locations(object: &str, found: &[&Cloudsnap], tasks: &[&Task]) -> Result<(), ApiError> {
    let locations: Vec<&str> = locations(found, tasks).into_iter().collect();
    if locations.len() < 2 {
        return Ok(());
    }
    let message = format!(
        "{object} is ambiguous (it is in {}): name one in `backupLocation`",
        locations.join(" and in ")
    );
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}
