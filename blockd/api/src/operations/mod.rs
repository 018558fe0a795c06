//! Operations of the control API: one typed table from which router, client, OpenAPI document and required
//! roles follow.

mod parameter;
mod table;

pub use parameter::PathParameter;
pub use table::*;

use crate::{Document, ErrorCode, SCHEMA_VERSION, roles::Role, uri::with_query};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use std::{any::TypeId, marker::PhantomData, time::Duration};
use zeroize::Zeroizing;

/// Timeout of a call that the daemon answers without store requests.
const CALL: Duration = Duration::from_secs(60);

/// Errors of every operation.
const ANY: &[ErrorCode] =
    &[ErrorCode::InvalidRequest, ErrorCode::Forbidden, ErrorCode::ShuttingDown, ErrorCode::Internal];
/// Errors of every change: the database or another file cannot grow.
const CHANGE: &[ErrorCode] = &[ErrorCode::NoSpace];
/// Errors of every operation whose requests may have a body.
const BODY: &[ErrorCode] = &[ErrorCode::RequestTooLarge];

/// HTTP method.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or acts.
    Post,
    /// Changes.
    Patch,
    /// Deletes.
    Delete,
}

impl Method {
    /// Returns the method as written in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Returns true if requests pass their input in the body, false if in the query.
    #[must_use]
    pub const fn has_body(self) -> bool {
        matches!(self, Self::Post | Self::Patch)
    }
}

/// Generator of a type's schema.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Body of a successful reply.
#[derive(Clone, Copy, Debug)]
pub enum ReplyBody {
    /// JSON object with [`Document::schema_version`].
    Json(SchemaOf),
    /// JSON document of another standard.
    ForeignJson,
    /// Text.
    Text,
    /// Raw bytes.
    Bytes,
}

/// Properties of an operation without its types.
#[derive(Clone, Copy, Debug)]
pub struct OperationInfo {
    /// Method.
    pub method: Method,
    /// Route pattern; `{…}` is the path parameter.
    pub path: &'static str,
    /// Minimum role.
    pub role: Role,
    /// Short description.
    pub summary: &'static str,
    /// Schema of the path parameter; generates `None` without one.
    pub parameter: fn(&mut SchemaGenerator) -> Option<Schema>,
    /// Schema of the query or body; generates `None` without one.
    pub input: fn(&mut SchemaGenerator) -> Option<Schema>,
    /// Reply.
    pub reply: ReplyBody,
    /// Specific errors; [`error_codes`](Self::error_codes) has all.
    pub errors: &'static [&'static [ErrorCode]],
}

impl OperationInfo {
    /// Returns all errors of the operation, some of them repeatedly.
    pub fn error_codes(&self) -> impl Iterator<Item = ErrorCode> {
        let change: &[ErrorCode] = if self.method == Method::Get { &[] } else { CHANGE };
        let body: &[ErrorCode] = if self.method.has_body() { BODY } else { &[] };
        [ANY, change, body].into_iter().chain(self.errors.iter().copied()).flatten().copied()
    }
}

/// Operation with path parameter `P`, query or body `I` and reply `R`; `()` if there is none.
#[derive(Debug)]
pub struct Operation<P, I, R> {
    /// Properties without the types.
    pub info: OperationInfo,
    /// Timeout of a call, in addition to the wait that its input requests.
    pub(crate) timeout: Duration,
    /// Wait for a change that the input requests, in milliseconds.
    pub(crate) wait_millis: fn(&I) -> Option<u64>,
    /// Decoder of the reply.
    pub(crate) decode: fn(&Bytes) -> Result<R, String>,
    parameter: PhantomData<fn(&P)>,
}

impl<P, I, R> Clone for Operation<P, I, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P, I, R> Copy for Operation<P, I, R> {}

fn input_schema<I: JsonSchema + 'static>(schemas: &mut SchemaGenerator) -> Option<Schema> {
    (TypeId::of::<I>() != TypeId::of::<()>()).then(|| schemas.subschema_for::<I>())
}

fn from_json<R: DeserializeOwned>(body: &Bytes) -> Result<R, String> {
    let document: Document<R> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    match document.schema_version {
        SCHEMA_VERSION => Ok(document.content),
        other => Err(format!("its schemaVersion is {other}, and only {SCHEMA_VERSION} is known here")),
    }
}

impl<P, I, R> Operation<P, I, R> {
    const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    const fn waits(mut self, wait_millis: fn(&I) -> Option<u64>) -> Self {
        self.wait_millis = wait_millis;
        self
    }

    const fn errors(mut self, errors: &'static [&'static [ErrorCode]]) -> Self {
        self.info.errors = errors;
        self
    }
}

impl<P: PathParameter, I: JsonSchema + 'static, R> Operation<P, I, R> {
    const fn of(
        method: Method,
        (role, path, summary): (Role, &'static str, &'static str),
        reply: ReplyBody,
        decode: fn(&Bytes) -> Result<R, String>,
    ) -> Self {
        let (parameter, input) = (P::schema, input_schema::<I>);
        let info = OperationInfo { method, path, role, summary, parameter, input, reply, errors: &[] };
        Self { info, timeout: CALL, wait_millis: |_| None, decode, parameter: PhantomData }
    }
}

impl<P: PathParameter, I: JsonSchema + 'static, R: JsonSchema + DeserializeOwned> Operation<P, I, R> {
    const fn json(method: Method, role: Role, path: &'static str, summary: &'static str) -> Self {
        let reply = ReplyBody::Json(SchemaGenerator::subschema_for::<R>);
        Self::of(method, (role, path, summary), reply, from_json)
    }

    const fn get(role: Role, path: &'static str, summary: &'static str) -> Self {
        Self::json(Method::Get, role, path, summary)
    }

    const fn post(role: Role, path: &'static str, summary: &'static str) -> Self {
        Self::json(Method::Post, role, path, summary)
    }

    const fn patch(role: Role, path: &'static str, summary: &'static str) -> Self {
        Self::json(Method::Patch, role, path, summary)
    }

    const fn delete(role: Role, path: &'static str, summary: &'static str) -> Self {
        Self::json(Method::Delete, role, path, summary)
    }
}

impl<P: PathParameter, I: JsonSchema + 'static> Operation<P, I, String> {
    const fn get_text(role: Role, path: &'static str, summary: &'static str) -> Self {
        let decode = |body: &Bytes| Ok(String::from_utf8_lossy(body).into_owned());
        Self::of(Method::Get, (role, path, summary), ReplyBody::Text, decode)
    }
}

impl<P: PathParameter, I: JsonSchema + 'static> Operation<P, I, serde_json::Value> {
    const fn get_foreign_json(role: Role, path: &'static str, summary: &'static str) -> Self {
        let decode = |body: &Bytes| serde_json::from_slice(body).map_err(|error| error.to_string());
        Self::of(Method::Get, (role, path, summary), ReplyBody::ForeignJson, decode)
    }
}

impl<P: PathParameter, I: JsonSchema + 'static> Operation<P, I, Bytes> {
    const fn get_bytes(role: Role, path: &'static str, summary: &'static str) -> Self {
        Self::of(Method::Get, (role, path, summary), ReplyBody::Bytes, |body| Ok(body.clone()))
    }
}

impl<P, I: 'static, R> Operation<P, I, R> {
    /// Returns true if requests have a query or body.
    #[must_use]
    pub fn has_input(&self) -> bool {
        TypeId::of::<I>() != TypeId::of::<()>()
    }
}

impl<P: PathParameter, I: Serialize + 'static, R> Operation<P, I, R> {
    /// Returns the percent-encoded path with the query of a request, and its body.
    pub(crate) fn request(&self, path: &P, input: &I) -> Result<(String, Bytes), serde_json::Error> {
        let path = path.fill(self.info.path);
        if !self.has_input() {
            return Ok((path, Bytes::new()));
        }
        if !self.info.method.has_body() {
            return Ok((with_query(&path, input)?, Bytes::new()));
        }
        // A body can hold secrets: it is wiped after sending, and allocated large enough to avoid copies by
        // reallocation.
        let mut json = Zeroizing::new(Vec::with_capacity(16 << 10));
        serde_json::to_writer(&mut *json, input)?;
        Ok((path, Bytes::from_owner(json)))
    }
}

/// Returns the minimum role of a method at a route pattern; `None` if there is no such operation.
#[must_use]
pub fn role_for(method: &str, path: &str) -> Option<Role> {
    // HEAD needs the role of GET.
    let method = if method == "HEAD" { "GET" } else { method };
    OPERATIONS.iter().find(|one| one.method.as_str() == method && one.path == path).map(|one| one.role)
}

#[cfg(test)]
mod tests;
