//! Costs of tasks: price tables of locations, budgets, and estimates.

use crate::{error::ServiceError, settings::Settings, volumes::registry::VolumeEntry};
use blockd_api::{
    ApiError, ByteSize, CredentialName, ErrorCode, VolumeName,
    costs::{CostEstimate, DEFAULT_PRICES, Prices},
    tasks::{Requests, TaskLimits},
};
use blockd_catalog::CredentialRow;
use blockd_store::{BudgetCheck, RequestCounts};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::OwnedMutexGuard;

/// Price tables by the name of a credential; [`DEFAULT_PRICES`] is the table of the others.
pub type PriceTables = BTreeMap<CredentialName, Prices>;

/// Returns the price table of a location.
pub fn prices_of<'a>(settings: &'a Settings, credential: &str) -> Option<&'a Prices> {
    let named = |name: &str| settings.prices.iter().find(|(key, _)| key.as_str() == name);
    named(credential).or_else(|| named(DEFAULT_PRICES)).map(|(_, prices)| prices)
}

/// Converts request counts to the API.
pub(crate) fn shown(counts: &RequestCounts) -> Requests {
    Requests {
        put: counts.put + counts.multipart,
        get: counts.get,
        list: counts.list,
        delete: counts.delete,
        head: 0,
    }
}

/// Returns the check of a task's requests against its limits, which may change while it runs.
pub(crate) fn budget(limits: Arc<Mutex<TaskLimits>>, prices: Option<Prices>) -> BudgetCheck {
    Arc::new(move |counts| {
        let limits = *limits.lock();
        exceeded(&limits, prices.as_ref(), counts)
    })
}

/// Returns the limit that these counts exceed.
fn exceeded(limits: &TaskLimits, prices: Option<&Prices>, counts: &RequestCounts) -> Option<String> {
    if let Some(max) = limits.max_requests.filter(|max| counts.total() > *max) {
        return Some(format!("limit of {max} requests"));
    }
    if let Some(max) = limits.max_egress_bytes.filter(|max| counts.bytes_down > *max) {
        return Some(format!("limit of {} received", ByteSize::from_bytes(max)));
    }
    let max = limits.max_cost?;
    // The table may have been removed since the start.
    let Some(prices) = prices else { return Some(format!("limit of {max}, but no price table")) };
    let is_above = prices.of_task(&shown(counts), counts.bytes_down) > max;
    is_above.then(|| format!("limit of {max} {}", prices.currency))
}

/// Refuses a limit of the cost for a location without prices.
///
/// # Errors
/// There is such a limit and no price table.
pub(crate) fn check_max_cost(
    settings: &Settings,
    limits: &TaskLimits,
    credential: &str,
) -> Result<(), ServiceError> {
    if limits.max_cost.is_none() || prices_of(settings, credential).is_some() {
        return Ok(());
    }
    let message = format!("a limit of the cost needs prices, and location {credential} has none");
    let hint = format!(
        "add [prices.{credential}] or [prices.{DEFAULT_PRICES}] to the configuration of the daemon and restart it, or use --max-requests and --max-egress"
    );
    Err(ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message).with_hint(hint)))
}

/// Begins an estimate that needs a snapshot of the volume: one at a time, as no queue bounds them.
///
/// # Errors
/// Another one of the volume is running.
pub(crate) fn begin_estimate(entry: &VolumeEntry) -> Result<OwnedMutexGuard<()>, ServiceError> {
    Arc::clone(&entry.estimating).try_lock_owned().map_err(|_| {
        let message = format!("an estimate of volume {} is running: wait for it to end", entry.name);
        ServiceError::refused(ErrorCode::VolumeInUse, message)
    })
}

/// Returns the estimate of a task that stores all that it sends and frees nothing.
pub(crate) fn estimate(
    settings: &Settings,
    credential: &CredentialRow,
    volume_name: Option<VolumeName>,
    counts: &RequestCounts,
    basis: impl Into<String>,
) -> CostEstimate {
    let estimate = CostEstimate {
        credential_id: credential.uuid,
        credential_name: credential.name.to_string(),
        volume_name,
        requests: shown(counts),
        upload_bytes: counts.bytes_up,
        download_bytes: counts.bytes_down,
        added_bytes: counts.bytes_up,
        freed_bytes: 0,
        uncertainty_percent: None,
        basis: basis.into(),
        price: None,
    };
    estimate.priced(prices_of(settings, credential.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_exceeded_by_one_more() {
        let prices = Prices { get_per_1000: "0.5".parse().unwrap(), ..Prices::default() };
        let counts = RequestCounts { put: 3, get: 10, bytes_down: 100, ..RequestCounts::default() };
        let is_exceeded = |limits| exceeded(&limits, Some(&prices), &counts).is_some();
        for (max, is_over) in [(12, true), (13, false)] {
            assert_eq!(is_exceeded(TaskLimits { max_requests: Some(max), ..TaskLimits::NONE }), is_over);
        }
        let limits = TaskLimits { max_egress_bytes: Some(3 << 19), ..TaskLimits::NONE };
        let more = RequestCounts { bytes_down: 2 << 20, ..counts };
        assert_eq!(exceeded(&limits, None, &more).unwrap(), "limit of 1.5 MiB received");
        for (max, is_over) in [(99, true), (100, false)] {
            assert_eq!(is_exceeded(TaskLimits { max_egress_bytes: Some(max), ..TaskLimits::NONE }), is_over);
        }
        for (max, is_over) in [("0.004999", true), ("0.005", false)] {
            let max_cost = Some(max.parse().unwrap());
            assert_eq!(is_exceeded(TaskLimits { max_cost, ..TaskLimits::NONE }), is_over);
        }
        assert!(!is_exceeded(TaskLimits::NONE));
        let max_cost = Some("1000".parse().unwrap());
        assert!(exceeded(&TaskLimits { max_cost, ..TaskLimits::NONE }, None, &counts).is_some());
    }
}
