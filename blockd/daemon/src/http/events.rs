//! Events.

use super::{Answer, Asked, Reply};
use crate::core::Core;
use axum::extract::State;
use blockd_api::events::{EventList, ListEvents};
use std::sync::Arc;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    Asked(query): Asked<ListEvents>,
) -> Answer<EventList> {
    Ok(Reply(core.list_events(&query).await?))
}
