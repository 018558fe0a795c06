//! Credentials.

use super::routes::Routes;
use blockd_api::operations;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_CREDENTIALS, async |call| call.core.list_credentials().await)
        .detached(operations::CREATE_CREDENTIAL, async |call| call.core.create_credential(call.input).await)
        .on(operations::GET_CREDENTIAL, async |call| call.core.inspect_credential(&call.path).await)
        .detached(operations::UPDATE_CREDENTIAL, async |call| {
            call.core.update_credential(&call.path, call.input).await
        })
        .detached(operations::DELETE_CREDENTIAL, async |call| {
            call.core.delete_credential(&call.core.whole_credential(&call.path).await?).await
        })
        .detached(operations::VALIDATE_CREDENTIAL, async |call| {
            call.core.validate_credential(&call.path).await
        })
        .detached(operations::REKEY_CREDENTIAL, async |call| {
            call.core.rekey_credential(&call.core.whole_credential(&call.path).await?, call.input).await
        })
        .detached(operations::LIMIT_CREDENTIAL, async |call| {
            call.core.limit_credential(&call.path, call.input).await
        })
}
