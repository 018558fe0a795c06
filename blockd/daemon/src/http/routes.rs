//! Router with a list of its routes, which is compared with the endpoint table.

use crate::core::Core;
use axum::{
    Router,
    handler::Handler,
    routing::{self, MethodRouter},
};
use blockd_api::operations::Method;
use std::sync::Arc;

/// Router and its routes.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Arc<Core>>,
    served: Vec<(Method, &'static str)>,
}

impl Routes {
    fn on<H, T>(mut self, method: Method, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<Core>>,
        T: 'static,
    {
        let serve: fn(H) -> MethodRouter<Arc<Core>> = match method {
            Method::Get => routing::get,
            Method::Post => routing::post,
            Method::Patch => routing::patch,
            Method::Delete => routing::delete,
        };
        self.router = self.router.route(path, serve(handler));
        self.served.push((method, path));
        self
    }

    pub(super) fn get<H: Handler<T, Arc<Core>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.on(Method::Get, path, handler)
    }

    pub(super) fn post<H: Handler<T, Arc<Core>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.on(Method::Post, path, handler)
    }

    pub(super) fn patch<H: Handler<T, Arc<Core>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.on(Method::Patch, path, handler)
    }

    pub(super) fn delete<H: Handler<T, Arc<Core>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.on(Method::Delete, path, handler)
    }

    /// Returns the router.
    pub(super) fn into_router(self) -> Router<Arc<Core>> {
        self.router
    }
}

#[cfg(test)]
mod tests {
    use blockd_api::operations::OPERATIONS;
    use std::collections::HashSet;

    #[test]
    fn served_routes_match_the_endpoint_table() {
        let served: HashSet<_> = super::super::routes().served.into_iter().collect();
        let said: HashSet<_> = OPERATIONS.iter().map(|one| (one.method, one.path)).collect();
        let missing: Vec<_> = said.difference(&served).collect();
        let unsaid: Vec<_> = served.difference(&said).collect();
        assert!(missing.is_empty(), "in the table and not served: {missing:?}");
        assert!(unsaid.is_empty(), "served and not in the table: {unsaid:?}");
    }
}
