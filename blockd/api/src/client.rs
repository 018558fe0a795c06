//! Client of the control API.
//!
//! Each request has its own connection: calls are rare, and a restart of the daemon between them does not
//! matter.

use crate::{
    ApiError, Endpoint, ErrorBody, MAX_BODY_BYTES,
    browse::{BrowseMount, HandMount},
    endpoint::Stream,
    fd_passing::Handing,
    operations::{HAND_MOUNT, Operation, PathParameter},
    text::with_sources,
    tls_diagnosis,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::{
    io, mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task::JoinHandle, time::timeout};

/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Failure of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket does not exist.
    #[error("there is no blockd at {}: the socket does not exist", path.display())]
    SocketMissing {
        /// Expected path.
        path: PathBuf,
    },
    /// No daemon listens on the socket.
    #[error("no blockd listens at {}: the daemon is not running", path.display())]
    Refused {
        /// Socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("permission denied at {}: this socket is for the user that runs blockd, its group if it has one, and root", path.display())]
    PermissionDenied {
        /// Socket.
        path: PathBuf,
    },
    /// The connection failed for another reason.
    #[error("cannot connect to blockd at {at}: {source}")]
    Connect {
        /// Socket or address.
        at: String,
        /// Cause.
        source: io::Error,
    },
    /// The daemon did not reply in time.
    #[error("blockd at {at} did not respond to {what} within {} s", after.as_secs())]
    Timeout {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// Elapsed timeout.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to blockd at {at} broke during {what}: {}", with_sources(source))]
    Broken {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// Cause.
        source: hyper::Error,
    },
    /// The reply violates the API: versions differ, or the server is not blockd.
    #[error("unexpected response of blockd at {at} to {what} (HTTP {status}): {reason}")]
    BadReply {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// HTTP status of the reply.
        status: u16,
        /// Description of the violation.
        reason: String,
    },
    /// A descriptor cannot be passed over this connection.
    #[error("a descriptor can be passed only over the unix socket of a blockd on this host, not to {at}")]
    NoSocket {
        /// Address.
        at: String,
    },
    /// The request cannot be serialised; a bug of its type.
    #[error("encoding the request {what} failed: {source}")]
    BadRequest {
        /// Method and path of the request.
        what: String,
        /// Cause.
        source: serde_json::Error,
    },
    /// The daemon refused the request.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// Returns true if no daemon could be reached.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::SocketMissing { .. }
                | Self::Refused { .. }
                | Self::PermissionDenied { .. }
                | Self::Connect { .. }
        )
    }

    /// Returns true if a retry of the same call can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::SocketMissing { .. } | Self::Refused { .. } | Self::Timeout { .. } => true,
            // A restarted daemon refuses the same certificate.
            Self::Connect { source, .. } => tls_diagnosis::advice(source).is_none(),
            Self::Broken { source, .. } => tls_diagnosis::advice(source).is_none(),
            Self::PermissionDenied { .. } | Self::NoSocket { .. } => false,
            Self::BadReply { .. } | Self::BadRequest { .. } => false,
            Self::Api(error) => error.is_retryable(),
        }
    }

    /// Returns the next action, unless the message implies it; without the settings that an error of the
    /// daemon names.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::SocketMissing { .. } | Self::Refused { .. } => Some(
                "start it with `blockd --data-dir DIR`, and name its socket DIR/blockd.sock with --socket or BLOCKD_SOCKET",
            ),
            Self::BadReply { .. } => {
                Some("blockctl and blockd should be of the same version, see `blockctl status`")
            }
            Self::Connect { source, .. } => tls_diagnosis::advice(source),
            Self::Broken { source, .. } => tls_diagnosis::advice(source),
            Self::Api(error) => error.hint.as_deref(),
            _ => None,
        }
    }
}

/// Client of a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
}

/// Aborts the connection's task when a call is dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Request of an operation, and the decoder of its reply.
struct PreparedCall<R> {
    /// Method and address, for errors.
    what: String,
    method: &'static str,
    address: String,
    body: Bytes,
    time_limit: Duration,
    decode: fn(&Bytes) -> Result<R, String>,
}

impl<R> PreparedCall<R> {
    fn new<P: PathParameter, I: Serialize + 'static>(
        operation: &Operation<P, I, R>,
        path: &P,
        input: &I,
    ) -> Result<Self, ClientError> {
        let (method, pattern) = (operation.info.method.as_str(), operation.info.path);
        let bad = |source| ClientError::BadRequest { what: format!("{method} {pattern}"), source };
        let (address, body) = operation.request(path, input).map_err(bad)?;
        let wait = (operation.wait_millis)(input).unwrap_or(0).min(crate::MAX_WAIT_MILLIS);
        let time_limit = operation.timeout + Duration::from_millis(wait);
        let what = format!("{method} {address}");
        Ok(Self { what, method, address, body, time_limit, decode: operation.decode })
    }
}

impl Client {
    /// Creates a client of a control socket; does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::at(Endpoint::unix(socket))
    }

    /// Creates a client of an endpoint; does not connect yet.
    pub fn at(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns the endpoint of the daemon.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Calls an operation without a path parameter.
    ///
    /// # Errors
    /// The daemon refuses, cannot be reached, or violates the API.
    pub async fn call<I: Serialize + 'static, R>(
        &self,
        operation: Operation<(), I, R>,
        input: &I,
    ) -> Result<R, ClientError> {
        self.call_at(operation, &(), input).await
    }

    /// Calls an operation on the object in its path.
    ///
    /// # Errors
    /// The daemon refuses, cannot be reached, or violates the API.
    pub async fn call_at<P: PathParameter, I: Serialize + 'static, R>(
        &self,
        operation: Operation<P, I, R>,
        path: &P,
        input: &I,
    ) -> Result<R, ClientError> {
        let call = PreparedCall::new(&operation, path, input)?;
        self.call_through(self.connect().await?, call).await
    }

    /// Calls through a connection, within the operation's timeout.
    async fn call_through<R>(&self, stream: Stream, mut call: PreparedCall<R>) -> Result<R, ClientError> {
        let body = mem::take(&mut call.body);
        let (status, body) = match timeout(call.time_limit, self.exchange(stream, &call, body)).await {
            Ok(reply) => reply?,
            Err(_) => {
                let at = self.endpoint.to_string();
                return Err(ClientError::Timeout { at, what: call.what, after: call.time_limit });
            }
        };
        (call.decode)(&body).map_err(|reason| self.bad_reply(&call.what, status, reason))
    }

    /// Passes the `/dev/fuse` descriptor of a mount to the daemon, which serves it.
    pub async fn hand_mount(
        &self,
        request: &HandMount,
        descriptor: OwnedFd,
    ) -> Result<BrowseMount, ClientError> {
        let call = PreparedCall::new(&HAND_MOUNT, &(), request)?;
        let Stream::Unix(stream) = self.connect().await? else {
            return Err(ClientError::NoSocket { at: self.endpoint.to_string() });
        };
        self.call_through(Stream::Handing(Handing::new(stream, descriptor)), call).await
    }

    async fn connect(&self) -> Result<Stream, ClientError> {
        let source = match timeout(CONNECT_TIMEOUT, self.endpoint.connect()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => source,
            Err(_) => io::Error::from(io::ErrorKind::TimedOut),
        };
        let at = self.endpoint.to_string();
        let Some(path) = self.endpoint.socket().map(Path::to_owned) else {
            return Err(ClientError::Connect { at, source });
        };
        Err(match source.kind() {
            io::ErrorKind::NotFound => ClientError::SocketMissing { path },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path },
            _ => ClientError::Connect { at, source },
        })
    }

    fn bad_reply(&self, what: &str, status: StatusCode, reason: String) -> ClientError {
        let (at, what, status) = (self.endpoint.to_string(), what.to_owned(), status.as_u16());
        ClientError::BadReply { at, what, status, reason }
    }

    /// Returns the body of a successful reply.
    async fn exchange<R>(
        &self,
        stream: Stream,
        call: &PreparedCall<R>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let PreparedCall { what, method, address, .. } = call;
        let broken =
            |source| ClientError::Broken { at: self.endpoint.to_string(), what: what.clone(), source };
        let bad_reply = |status: StatusCode, reason: String| self.bad_reply(what, status, reason);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Connection errors are also returned by the request.
        let _connection = Connection(tokio::spawn(async move { drop(connection.await) }));

        let mut request =
            Request::builder().method(*method).uri(address).header(header::HOST, self.endpoint.host());
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| {
            bad_reply(StatusCode::BAD_REQUEST, format!("invalid request address: {error}"))
        })?;
        let reply = sender.send_request(request).await.map_err(broken)?;
        let status = reply.status();
        let body = match Limited::new(reply.into_body(), MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(bad_reply(status, format!("the reply is longer than {MAX_BODY_BYTES} bytes")));
            }
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(source) => return Err(broken(*source)),
                Err(error) => return Err(bad_reply(status, error.to_string())),
            },
        };
        if status.is_success() {
            return Ok((status, body));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ClientError::Api(body.error)),
            Err(_) => Err(bad_reply(status, "the error is not in the form of this API".to_owned())),
        }
    }
}
