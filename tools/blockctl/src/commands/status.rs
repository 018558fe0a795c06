//! `blockctl status`

use super::health::{HealthProblem, Known, problems};
use crate::{
    failure::{EXIT_DONE, Exit},
    output::Context,
    table::{Facts, counted},
};
use blockd_api::{ByteSize, format_duration, operations, status::Status};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// Document of `status`: the daemon's reply, with all problems in place of its own.
#[derive(Serialize, JsonSchema)]
pub struct Health {
    #[serde(flatten)]
    status: Status,
    /// Problems, the worst first.
    problems: Vec<HealthProblem>,
}

pub async fn run(context: &Context<'_>) -> Exit {
    let client = &context.client;
    let status = client.call(operations::GET_STATUS, &()).await?;
    let known = Known::load(context, &status).await?;
    let problems = problems(&known, Timestamp::now());
    if context.output.is_json() {
        let document = Health { status: Status { problems: Vec::new(), ..status }, problems };
        return context.output.document(&document);
    }
    let mut facts = facts(&status);
    facts.add(
        "Health",
        match problems.len() {
            0 => "no problems".to_owned(),
            several => counted(several as u64, "problem"),
        },
    );
    context.output.raw(facts.render().as_bytes())?;
    for problem in &problems {
        context.output.line(format!("- {}", problem.cause))?;
        context.output.line(format!("    {}", problem.action))?;
    }
    Ok(EXIT_DONE)
}

fn facts(status: &Status) -> Facts {
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
    if let Some(space) = status.data_space {
        let (free, total) = (ByteSize::from_bytes(space.free_bytes), ByteSize::from_bytes(space.total_bytes));
        facts.add("Free space", format!("{free} of {total}"));
    }
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
    for hook in &status.webhooks {
        facts.add(
            "Webhook",
            format!(
                "{} at {}: {} delivered, {} waiting",
                hook.name, hook.origin, hook.delivered, hook.waiting
            ),
        );
    }
    facts
}
