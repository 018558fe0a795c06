//! `blockctl cloudsnap pin`, `unpin` and `expire`

use super::Context;
use crate::{
    cli::pins::{ExpireArgs, PinArgs},
    failure::{EXIT_DONE, Failure},
};
use blockd_api::{
    cloudsnaps::{CloudsnapMark, CloudsnapMetadata, MarkCloudsnap},
    format_time, operations,
};

pub async fn pin(context: &Context<'_>, args: PinArgs, pinned: bool) -> Result<u8, Failure> {
    let request = MarkCloudsnap {
        snap: args.snap,
        cred_id: args.credential.cred_id,
        pinned: Some(pinned),
        expires: None,
        never_expires: false,
    };
    mark(context, &request).await
}

pub async fn expire(context: &Context<'_>, args: ExpireArgs) -> Result<u8, Failure> {
    let request = MarkCloudsnap {
        snap: args.snap,
        cred_id: args.credential.cred_id,
        pinned: None,
        expires: args.at,
        never_expires: args.never,
    };
    mark(context, &request).await
}

async fn mark(context: &Context<'_>, request: &MarkCloudsnap) -> Result<u8, Failure> {
    let mark = context.client.call(operations::MARK_CLOUDSNAP, request).await?;
    match context.output.is_json() {
        true => context.output.document(&mark)?,
        false => context.output.line(describe(&mark))?,
    }
    Ok(EXIT_DONE)
}

fn describe(mark: &CloudsnapMark) -> String {
    let id = mark.id;
    match (mark.pinned, mark.expires) {
        (true, None) => format!("Cloudsnap {id} is pinned."),
        (true, Some(at)) => {
            format!("Cloudsnap {id} is pinned; without that it would expire on {}.", format_time(at))
        }
        (false, Some(at)) => format!("Cloudsnap {id} expires on {}.", format_time(at)),
        (false, None) => format!("Cloudsnap {id} is kept as rules say."),
    }
}

/// Formats pin and expiry date for a list.
pub fn kept(metadata: &CloudsnapMetadata) -> String {
    match (&metadata.pinned, &metadata.expires) {
        (Some(_), _) => "pinned".into(),
        (None, Some(at)) => format!("until {at}"),
        (None, None) => "-".into(),
    }
}
