//! Labels of a volume during and after an in-place restore.

use crate::{error::ServiceError, volumes::registry::Tags};
use blockd_api::{ErrorCode, Labels, PairsError};
use std::collections::BTreeMap;

/// Returns the tags of a volume from the first write of a restore on; `labels` are those that it sets at its
/// end.
///
/// # Errors
/// The names of earlier restores are too long.
pub(super) fn before_first_write(tags: Tags, labels: &Labels) -> Result<Tags, ServiceError> {
    let labels = tags.labels.replaced_by(labels).map_err(|error| refused(&error))?;
    Ok(Tags { labels, ..tags })
}

/// Adds labels.
///
/// # Errors
/// They are too many.
pub(super) fn with_labels(tags: Tags, labels: &Labels) -> Result<Tags, ServiceError> {
    let labels = Labels::try_from(BTreeMap::from(tags.labels.overlaid_by(labels)));
    let labels = labels.map_err(|error| refused(&error))?;
    Ok(Tags { labels, ..tags })
}

fn refused(error: &PairsError) -> ServiceError {
    ServiceError::refused(ErrorCode::InvalidRequest, error.to_string())
}
