//! Events.

use super::{HandlerResult, Input, Reply};
use crate::core::Core;
use axum::extract::State;
use blockd_api::events::{EventList, ListEvents};
use std::sync::Arc;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    Input(query): Input<ListEvents>,
) -> HandlerResult<EventList> {
    Ok(Reply(core.list_events(&query).await?))
}
