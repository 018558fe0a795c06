//! Table of estimated costs, for `--dry-run`.

use crate::{
    failure::{EXIT_DONE, Exit},
    output::Output,
    table::{Table, Width, counted, or_dash},
};
use blockd_api::{ByteSize, List, costs::CostEstimate};
use std::collections::BTreeSet;

/// Returns the change of the stored bytes.
fn stored(estimate: &CostEstimate) -> String {
    match (estimate.added_bytes, estimate.freed_bytes) {
        (0, 0) => "0".to_owned(),
        (0, freed) => format!("-{}", ByteSize::from_bytes(freed)),
        (added, _) => format!("+{}", ByteSize::from_bytes(added)),
    }
}

/// Returns the uploaded bytes, with an uncertainty above 5 %.
fn upload(estimate: &CostEstimate) -> String {
    let bytes = ByteSize::from_bytes(estimate.upload_bytes);
    match estimate.uncertainty_percent {
        Some(percent) => format!("{bytes} ±{percent}%"),
        None => bytes.to_string(),
    }
}

/// Returns the table of costs.
pub fn table(estimates: &[CostEstimate]) -> Table {
    let price = |estimate: &CostEstimate| match &estimate.price {
        Some(price) => price.total.to_string(),
        None => "-".to_owned(),
    };
    let per_month = |estimate: &CostEstimate| match &estimate.price {
        Some(price) => price.storage_per_month.to_string(),
        None => "-".to_owned(),
    };
    let volumes: BTreeSet<_> = estimates.iter().map(|one| &one.volume_name).collect();
    let locations: BTreeSet<_> = estimates.iter().map(|one| &one.credential_name).collect();
    // One column of both: the others take 70 characters.
    let (title, has_location) = match (volumes.len(), locations.len()) {
        (0 | 1, _) => ("LOCATION", true),
        (_, several) => ("VOLUME", several > 1),
    };
    let object = |one: &CostEstimate| match (title, has_location) {
        ("LOCATION", _) => one.credential_name.clone(),
        (_, false) => or_dash(one.volume_name.as_ref()),
        (_, true) => format!("{} at {}", or_dash(one.volume_name.as_ref()), one.credential_name),
    };
    Table::list(estimates, Width::Narrow)
        .both(title, object)
        .both("PUT", |one| one.requests.put)
        .both("GET", |one| one.requests.get)
        .both("LIST", |one| one.requests.list)
        .both("DELETE", |one| one.requests.delete)
        .both("UPLOAD", upload)
        .both("DOWNLOAD", |one| ByteSize::from_bytes(one.download_bytes))
        .both("STORED", stored)
        .both("COST", price)
        .both("MONTH", per_month)
        .fit(title)
}

/// Reports an estimate.
pub fn report(output: &Output, estimated: &List<CostEstimate>) -> Exit {
    match output.is_json() {
        true => output.document(estimated),
        false => show(output, &estimated.items),
    }
}

/// Shows the costs and the origin of the figures, below the table.
pub fn show(output: &Output, estimates: &[CostEstimate]) -> Exit {
    output.table(&table(estimates))?;
    for one in estimates {
        let requests = &one.requests;
        let all = requests.put + requests.get + requests.list + requests.delete + requests.head;
        let currency = one.price.as_ref().map(|price| format!("; prices in {}", price.currency));
        let (name, basis, currency) = (&one.credential_name, &one.basis, currency.unwrap_or_default());
        let all = counted(all, "request");
        let of = one.volume_name.as_ref().map_or_else(String::new, |volume| format!("{volume} at "));
        output.hanging("", &format!("{of}{name}: {all}, {basis}{currency}"), 2)?;
    }
    if estimates.iter().any(|one| one.price.is_none()) {
        output.line("No prices: [prices.NAME] in the daemon's configuration adds them.")?;
    }
    Ok(EXIT_DONE)
}
