//! `blockctl status`

use super::{Context, counted};
use crate::{
    failure::{EXIT_DONE, Failure},
    table::Facts,
};
use blockd_api::format_duration;

pub async fn run(context: &Context<'_>) -> Result<u8, Failure> {
    let status = context.client.status().await?;
    if context.output.is_json() {
        context.output.document(&status)?;
        return Ok(EXIT_DONE);
    }
    let counts = &status.counts;
    let volumes = match counts.volumes_failed {
        0 => counts.volumes.to_string(),
        failed => format!("{} ({failed} failed)", counts.volumes),
    };
    let mut facts = Facts::default();
    facts
        .add("Version", &status.version)
        .add("Cluster", status.cluster_id)
        .add("Node", &status.node)
        .add("Data directory", status.data_dir.display());
    for uri in &status.nbd {
        facts.add("NBD", uri);
    }
    if let Some(control) = &status.control {
        facts.add("Control", format!("https://{control}"));
    }
    facts
        .add("Uptime", format_duration(status.uptime_seconds as f64))
        .add("Volumes", format!("{volumes}, {}", counted(counts.connections, "connection")))
        .add("Snapshots", counts.snapshots)
        .add("Credentials", counts.credentials)
        .add("Active tasks", counts.tasks_active);
    context.output.raw(facts.render().as_bytes())?;
    Ok(EXIT_DONE)
}
