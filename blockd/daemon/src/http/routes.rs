//! Router of the operations, and the state of their handlers.

use super::{
    caller::Caller,
    extractors::{Body, Input, Named},
    replies::{Failure, Reply, invalid},
};
use crate::served::Served;
use axum::{
    Router,
    extract::{FromRef, FromRequest, FromRequestParts, Request, State},
    handler::Handler,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{self, MethodRouter},
};
use blockd_api::{
    ErrorCode,
    operations::{Method, Operation, OperationInfo, PathParameter},
};
use blockd_engine::{
    engine::Engine,
    error::{ServiceError, spawned},
    owner,
    repositories::preflight::with_client_cancellation,
};
use blockd_views::browse::Browser;
use futures::{FutureExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// State of the handlers.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) browser: Arc<Browser>,
    pub(crate) served: Arc<Served>,
}

impl FromRef<Api> for Arc<Browser> {
    fn from_ref(api: &Api) -> Self {
        Arc::clone(&api.browser)
    }
}

impl FromRef<Api> for Arc<Engine> {
    fn from_ref(api: &Api) -> Self {
        Arc::clone(&api.engine)
    }
}

/// Handlers of operations have one type: the compiler generates much code for each.
type Serve = Arc<dyn Fn(Api, Request) -> BoxFuture<'static, Result<Response, Failure>> + Send + Sync>;

/// Request of an operation.
pub(super) struct OperationCall<P, I> {
    pub(super) engine: Arc<Engine>,
    pub(super) browser: Arc<Browser>,
    pub(super) served: Arc<Served>,
    pub(super) caller: Caller,
    /// Path parameter.
    pub(super) path: P,
    /// Query or body.
    pub(super) input: I,
}

impl<P, I> OperationCall<P, I>
where
    P: PathParameter,
    I: DeserializeOwned + 'static,
{
    async fn of<R>(operation: Operation<P, I, R>, api: Api, request: Request) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::from_request_parts(&mut parts, &api).await?;
        let Named(path) = match operation.info.path.contains('{') {
            true => Named::from_request_parts(&mut parts, &api).await?,
            false => Named(P::parse("").map_err(invalid)?),
        };
        let input = if !operation.has_input() {
            serde_json::from_value(serde_json::Value::Null).map_err(|error| invalid(error.to_string()))?
        } else if operation.info.method.has_body() {
            Body::from_request(Request::from_parts(parts, body), &api).await?.0
        } else {
            Input::from_request_parts(&mut parts, &api).await?.0
        };
        let Api { engine, browser, served } = api;
        Ok(Self { engine, browser, served, caller, path, input })
    }
}

/// Panics on an error that the operation's row in the table does not list: programs rely on the list.
fn assert_listed(operation: &OperationInfo, response: &Response) {
    let Some(code) = response.extensions().get::<ErrorCode>() else { return };
    let OperationInfo { method, path, .. } = operation;
    assert!(
        operation.error_codes().any(|listed| listed == *code),
        "{} {path} failed with {code}, which its row of the table does not list",
        method.as_str()
    );
}

/// Runs a change apart from its connection, and waits for it. A change with a preflight request to a store
/// does not start if the client has disconnected by then.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, Failure> {
    let (_waiting, work) = with_client_cancellation(work.boxed());
    Ok(spawned(owner::scope(owner::current(), work)).await?)
}

/// Router and the operations that it serves.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Api>,
    served: Vec<OperationInfo>,
}

impl Routes {
    /// Adds an operation with a handler that reads the HTTP request itself, or writes the reply.
    pub(super) fn raw<P, I, R, H, T>(self, operation: Operation<P, I, R>, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        self.with(operation.info, handler)
    }

    fn with<H, T>(mut self, info: OperationInfo, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let serve: fn(H) -> MethodRouter<Api> = match info.method {
            Method::Get => routing::get,
            Method::Post => routing::post,
            Method::Patch => routing::patch,
            Method::Delete => routing::delete,
        };
        let mut served = serve(handler);
        if cfg!(debug_assertions) {
            served = served.layer(map_response(move |response: Response| async move {
                assert_listed(&info, &response);
                response
            }));
        }
        self.router = self.router.route(info.path, served);
        self.served.push(info);
        self
    }

    /// Adds an operation.
    pub(super) fn on<P, I, R, E, F>(
        self,
        operation: Operation<P, I, R>,
        handler: impl Fn(OperationCall<P, I>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        P: PathParameter + Send + 'static,
        I: DeserializeOwned + Send + 'static,
        R: Serialize + 'static,
        E: Into<Failure>,
        F: Future<Output = Result<R, E>> + Send,
    {
        let serve: Serve = Arc::new(move |api, request| {
            let handler = handler.clone();
            async move {
                let call = OperationCall::of(operation, api, request).await?;
                handler(call).await.map(|reply| Reply(reply).into_response()).map_err(E::into)
            }
            .boxed()
        });
        self.erased(operation.info, serve)
    }

    fn erased(self, info: OperationInfo, serve: Serve) -> Self {
        self.with(info, move |State(api): State<Api>, request: Request| serve(api, request))
    }

    /// Adds an operation that runs apart from its connection; see [`detached`].
    pub(super) fn detached<P, I, R, F>(
        self,
        operation: Operation<P, I, R>,
        handler: impl Fn(OperationCall<P, I>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        P: PathParameter + Send + 'static,
        I: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Future<Output = Result<R, ServiceError>> + Send + 'static,
    {
        self.on(operation, move |call| detached(handler(call)))
    }

    /// Adds other routes.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.router = self.router.merge(others.router);
        self.served.extend(others.served);
        self
    }

    /// Returns the router.
    pub(super) fn into_router(self) -> Router<Api> {
        self.router
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, assert_listed, detached};
    use axum::response::IntoResponse;
    use blockd_api::{
        ErrorCode,
        operations::{GET_VOLUME, OPERATIONS},
    };
    use blockd_engine::error::ServiceError;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn change_is_not_started_after_its_client_disconnects() {
        let (answer, answered) = oneshot::channel::<()>();
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let change = async move {
            let question = async { Ok(answered.await.is_ok()) };
            blockd_engine::repositories::preflight::in_time(Duration::from_secs(60), question).await?;
            begins.store(true, Ordering::SeqCst);
            Ok(())
        };
        let cancelled = tokio::time::timeout(Duration::from_millis(20), detached(change)).await;
        assert!(cancelled.is_err());
        let _ = answer.send(());
        // The request ends in either way.
        while Arc::strong_count(&begun) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(!begun.load(Ordering::SeqCst));
    }

    #[test]
    #[should_panic(expected = "failed with volume_exists, which its row")]
    fn error_that_an_operation_does_not_list_panics() {
        let answer = |code| Failure(ServiceError::refused(code, "x")).into_response();
        assert_listed(&GET_VOLUME.info, &answer(ErrorCode::VolumeNotFound));
        assert_listed(&GET_VOLUME.info, &answer(ErrorCode::VolumeExists));
    }

    #[test]
    fn operations_all_have_a_handler() {
        let served = super::super::routes().served;
        let is_served = |method, path| served.iter().any(|one| (one.method, one.path) == (method, path));
        let missing: Vec<_> = OPERATIONS.iter().filter(|one| !is_served(one.method, one.path)).collect();
        assert!(missing.is_empty(), "without a handler: {missing:?}");
    }
}
