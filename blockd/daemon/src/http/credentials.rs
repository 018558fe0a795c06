//! Credentials.

use super::{Body, HandlerResult, Named, Reply, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    CredentialRef, Deleted,
    credential_update::UpdateCredential,
    credentials::{
        CreateCredential, Credential, CredentialLimits, CredentialList, CredentialRekeyed, RekeyCredential,
    },
};
use std::sync::Arc;

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Body(request): Body<CreateCredential>,
) -> HandlerResult<Credential> {
    detached(async move { core.create_credential(request).await }).await
}

pub(super) async fn list(State(core): State<Arc<Core>>) -> HandlerResult<CredentialList> {
    Ok(Reply(core.list_credentials().await?))
}

pub(super) async fn inspect(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
) -> HandlerResult<Credential> {
    Ok(Reply(core.inspect_credential(&credential).await?))
}

pub(super) async fn validate(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
) -> HandlerResult<Credential> {
    detached(async move { core.validate_credential(&credential).await }).await
}

pub(super) async fn update(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
    Body(request): Body<UpdateCredential>,
) -> HandlerResult<Credential> {
    detached(async move { core.update_credential(&credential, request).await }).await
}

pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
) -> HandlerResult<Deleted> {
    detached(async move { core.delete_credential(&core.whole_credential(&credential).await?).await }).await
}

pub(super) async fn rekey(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
    Body(request): Body<RekeyCredential>,
) -> HandlerResult<CredentialRekeyed> {
    detached(async move { core.rekey_credential(&core.whole_credential(&credential).await?, request).await })
        .await
}

pub(super) async fn limit(
    State(core): State<Arc<Core>>,
    Named(credential): Named<CredentialRef>,
    Body(limits): Body<CredentialLimits>,
) -> HandlerResult<Credential> {
    detached(async move { core.limit_credential(&credential, limits).await }).await
}
