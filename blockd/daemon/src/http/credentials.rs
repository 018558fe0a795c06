//! Credentials.

use super::routes::Routes;
use blockd_api::operations;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_CREDENTIALS, async |call| call.engine.credentials.list_credentials().await)
        .detached(operations::CREATE_CREDENTIAL, async |call| {
            call.engine.credentials.create_credential(call.input).await
        })
        .on(operations::GET_CREDENTIAL, async |call| {
            call.engine.credentials.inspect_credential(&call.path).await
        })
        .detached(operations::UPDATE_CREDENTIAL, async |call| {
            call.engine.credentials.update_credential(&call.path, call.input).await
        })
        .detached(operations::DELETE_CREDENTIAL, async |call| {
            call.engine
                .credentials
                .delete_credential(&call.engine.names.whole_credential(&call.path).await?)
                .await
        })
        .detached(operations::VALIDATE_CREDENTIAL, async |call| {
            call.engine.credentials.validate_credential(&call.path).await
        })
        .detached(operations::REKEY_CREDENTIAL, async |call| {
            call.engine
                .credentials
                .rekey_credential(&call.engine.names.whole_credential(&call.path).await?, call.input)
                .await
        })
        .detached(operations::SET_DEFAULT_CREDENTIAL, async |call| {
            call.engine.credentials.set_default_credential(&call.path).await
        })
        .detached(operations::LIMIT_CREDENTIAL, async |call| {
            call.engine.credentials.limit_credential(&call.path, call.input).await
        })
}
