//! `blockctl cloudsnap pin`, `unpin` and `expire`

use crate::{
    commands::arguments::{CredentialArg, SnapArg},
    confirm::YesArg,
    failure::Exit,
    output::Context,
    table::short_uuid,
};
use blockd_api::{
    cloudsnaps::{CloudsnapMark, MarkCloudsnap},
    format_time, operations,
};
use clap::Args;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

pub const PIN_HELP: &str = "\
No schedule and no date deletes a pinned cloud snapshot, and `cloudsnap delete` needs --force. \
This daemon stores the pin; another host with the same bucket does not know of it.

Examples:
  blockctl cloudsnap pin ID
  blockctl -j cs pin --snap ID --cred-id nas";

pub const UNPIN_HELP: &str = "\
Retention and expiry apply again.

Examples:
  blockctl cloudsnap unpin db@latest";

pub const EXPIRE_HELP: &str = "\
The cloud snapshot is kept until the date and deleted then, independent of schedules; but never \
the last restorable one of its volume. This daemon stores the date, as it does pins; one that \
another host made needs --force.

Examples:
  blockctl cloudsnap expire ID 2027-01-31
  blockctl cs expire ID 30d
  blockctl cs expire ID --never";

/// `cloudsnap pin` and `unpin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub snap: SnapArg,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap expire`
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub snap: SnapArg,
    /// Date or time in UTC, or hours, days or weeks from now: 2027-01-31, 2027-01-31T12:00:00Z, 30d
    #[arg(value_name = "DATE", required_unless_present = "never", value_parser = expiry)]
    pub at: Option<Timestamp>,
    /// Remove the expiry date
    #[arg(long, conflicts_with = "at")]
    pub never: bool,
    /// Set the date although another host made it
    #[arg(short, long, conflicts_with = "never")]
    pub force: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Parses an expiry date.
pub fn expiry(text: &str) -> Result<Timestamp, String> {
    expiry_from(text, Timestamp::now())
}

fn expiry_from(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || {
        "expected a date such as 2027-01-31, a time such as 2027-01-31T12:00:00Z, or a number of hours, days or weeks such as 12h, 30d or 8w"
            .to_owned()
    };
    if let Ok(date) = text.parse::<Date>()
        && text.len() == "2027-01-31".len()
    {
        return date.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|_| wrong());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let hours = [('h', 1), ('d', 24), ('w', 7 * 24)];
    let (count, hours) =
        hours.iter().find_map(|(unit, hours)| Some((text.strip_suffix(*unit)?, *hours))).ok_or_else(wrong)?;
    // Longer than ten thousand years is a typing error.
    let count: u32 = count.parse().ok().filter(|count| (1..=1_000_000).contains(count)).ok_or_else(wrong)?;
    now.checked_add(SignedDuration::from_hours(i64::from(count) * hours)).map_err(|_| wrong())
}

pub async fn pin(context: &Context<'_>, args: PinArgs, pinned: bool) -> Exit {
    let credential = args.credential.cred_id;
    let request = MarkCloudsnap {
        cloud_snapshot_id: args.snap.snap.resolve_only(context, credential.as_ref()).await?,
        credential,
        pinned: Some(pinned),
        expires_at: None,
        never_expires: false,
        force: false,
    };
    mark(context, &request).await
}

pub async fn expire(context: &Context<'_>, args: ExpireArgs) -> Exit {
    let credential = args.credential.cred_id;
    let id = args.snap.snap.resolve_only(context, credential.as_ref()).await?;
    if let Some(at) = args.at.filter(|_| args.force && args.yes.must_ask())
        && id.cluster != context.client.call(operations::GET_STATUS, &()).await?.cluster_id
    {
        let (host, at) = (short_uuid(id.cluster), format_time(at));
        let consequence = format!("Cloud snapshot {id} of host {host} is deleted permanently on {at}.");
        args.yes.confirm(context.output, &consequence)?;
    }
    let request = MarkCloudsnap {
        cloud_snapshot_id: id,
        credential,
        pinned: None,
        expires_at: args.at,
        never_expires: args.never,
        force: args.force,
    };
    mark(context, &request).await
}

async fn mark(context: &Context<'_>, request: &MarkCloudsnap) -> Exit {
    let mark = context.client.call(operations::MARK_CLOUDSNAP, request).await?;
    context.output.tell(&mark, || describe(&mark))
}

fn describe(mark: &CloudsnapMark) -> String {
    let id = mark.cloud_snapshot_id;
    match (mark.pinned, mark.expires_at) {
        (true, None) => format!("Cloudsnap {id} is pinned."),
        (true, Some(at)) => {
            format!("Cloudsnap {id} is pinned; without that it would expire on {}.", format_time(at))
        }
        (false, Some(at)) => format!("Cloudsnap {id} expires on {}.", format_time(at)),
        (false, None) => format!("Cloudsnap {id} is neither pinned nor set to expire."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_accepted_in_common_forms() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (text, at) in [
            ("2027-01-31", "2027-01-31T00:00:00Z"),
            ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
            ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
            ("12h", "2026-11-23T00:00:00Z"),
            ("30d", "2026-12-22T12:00:00Z"),
            ("1w", "2026-11-29T12:00:00Z"),
        ] {
            assert_eq!(expiry_from(text, now).unwrap().to_string(), at, "{text}");
        }
        for bad in
            ["", "d", "0d", "-1d", "1.5d", "30", "30m", "tomorrow", "2027-02-30", "999999999d", "1000000w"]
        {
            assert!(expiry_from(bad, now).is_err(), "{bad}");
        }
    }
}
