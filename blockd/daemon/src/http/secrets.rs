//! Secrets that lie elsewhere.

use super::{Answer, Body, Reply};
use crate::core::Core;
use axum::extract::State;
use blockd_api::secrets::{CheckSecret, SecretChecked, SecretList, SecretProviders};
use std::sync::Arc;

pub(super) async fn list(State(core): State<Arc<Core>>) -> Answer<SecretList> {
    Ok(Reply(core.list_secrets().await?))
}

pub(super) async fn check(
    State(core): State<Arc<Core>>,
    Body(request): Body<CheckSecret>,
) -> Answer<SecretChecked> {
    Ok(Reply(core.check_secret(request).await?))
}

pub(super) async fn providers(State(core): State<Arc<Core>>) -> Answer<SecretProviders> {
    Ok(Reply(core.references.providers().await))
}
