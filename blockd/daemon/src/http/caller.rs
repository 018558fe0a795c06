//! Callers and their permissions.
//!
//! Each listener determines its callers; the table of operations has the required role of each one.
//! Operations that are not in the table are for admins only.

use super::replies::Failure;
use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse, Response},
};
use blockd_api::{ErrorCode, operations::role_for, roles::Role, tasks::TaskOwner};
use blockd_engine::{
    error::ServiceError,
    owner::{self, User},
};

/// Caller of the API.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Role; `None` allows nothing.
    pub role: Option<Role>,
    /// Name for refusals and the log.
    pub name: String,
    /// User of this host, as reported by the kernel.
    pub user: Option<User>,
}

impl Caller {
    /// Returns the caller of the daemon's own socket.
    pub(crate) fn owner() -> Self {
        Self { role: Some(Role::Admin), name: "the daemon's own socket".to_owned(), user: None }
    }

    /// Returns true for an admin.
    pub(crate) fn is_admin(&self) -> bool {
        self.role == Some(Role::Admin)
    }

    /// Returns the owner of the tasks that this caller starts.
    pub(crate) fn as_owner(&self) -> TaskOwner {
        TaskOwner::Caller {
            name: self.name.clone(),
            role: self.role.unwrap_or(Role::ReadOnly),
            uid: self.user.map(|user| user.uid),
        }
    }

    /// Returns true if this caller started the tasks of the owner, with any role.
    pub(crate) fn owns(&self, owner: &TaskOwner) -> bool {
        matches!(owner, TaskOwner::Caller { name, uid, .. }
            if *name == self.name && *uid == self.user.map(|user| user.uid))
    }

    /// Refuses a request above the caller's role.
    pub(crate) fn needs(&self, role: Role, for_what: &str) -> Result<(), Failure> {
        if self.role.is_some_and(|has| has >= role) {
            return Ok(());
        }
        let has = match self.role {
            Some(has) => format!("{} is {has}", self.name),
            None => format!("{} has no role", self.name),
        };
        tracing::debug!(what = for_what, "refused");
        let error =
            ServiceError::refused(ErrorCode::Forbidden, format!("{for_what} is for {role}s, but {has}"));
        Err(Failure(error))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Failure(ServiceError::Internal("the caller is unknown".to_owned())))
    }
}

/// Passes a request if the caller's role permits it.
pub(super) async fn guard(caller: Caller, path: MatchedPath, request: Request, then: Next) -> Response {
    // Only browsers send an origin, and a foreign page must not use the browser's certificate.
    if ["origin", "sec-fetch-site"].iter().any(|name| request.headers().contains_key(*name)) {
        let message = "requests of web pages are refused";
        return Failure(ServiceError::refused(ErrorCode::Forbidden, message)).into_response();
    }
    let method = request.method().as_str();
    let role = role_for(method, path.as_str()).unwrap_or(Role::Admin);
    match caller.needs(role, &format!("{method} {}", path.as_str())) {
        Ok(()) => owner::scope(caller.as_owner(), then.run(request)).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_caller_learns_its_role_and_the_required_one() {
        let told = |role| {
            let caller = Caller { role, name: "bob".to_owned(), user: None };
            caller.needs(Role::Operator, "POST /v1/volumes").map_err(|Failure(error)| error.to_string())
        };
        assert_eq!(told(Some(Role::Operator)), Ok(()));
        assert_eq!(told(Some(Role::Admin)), Ok(()));
        assert_eq!(
            told(Some(Role::ReadOnly)).unwrap_err(),
            "POST /v1/volumes is for operators, but bob is read-only"
        );
        assert_eq!(told(None).unwrap_err(), "POST /v1/volumes is for operators, but bob has no role");
    }
}
