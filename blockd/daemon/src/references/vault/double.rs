//! What stands in for a Vault in tests: a key-value store, logins, tokens that end, and ways to be of no use.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// How it is of no use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trick {
    None,
    Sealed,
    /// Says nothing.
    Silent,
    /// Says more than anybody takes.
    Endless,
    Garbage,
    Status(u16),
    /// This status, once.
    Once(u16),
}

pub(crate) struct TokenState {
    pub until: Option<Instant>,
    pub ttl_s: u64,
    pub renewable: bool,
    /// Whether it may read secrets.
    pub reads: bool,
}

impl TokenState {
    pub fn lasting(ttl_s: u64, renewable: bool) -> Self {
        let until = (ttl_s > 0).then(|| Instant::now() + Duration::from_secs(ttl_s));
        Self { until, ttl_s, renewable, reads: true }
    }
}

pub(crate) struct Inside {
    /// By path, such as `secret/data/s3`.
    pub secrets: BTreeMap<String, Value>,
    pub tokens: HashMap<String, TokenState>,
    /// The secret id of role `blockd`.
    pub secret_id: String,
    pub login_ttl_s: u64,
    pub login_renewable: bool,
    pub logins: u64,
    pub trick: Trick,
    pub requests: Vec<String>,
    pub namespaces: Vec<String>,
}

pub(crate) struct Double {
    pub address: SocketAddr,
    pub inside: Arc<Mutex<Inside>>,
    server: JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Double {
    pub async fn new() -> Self {
        let inside = Inside {
            secrets: BTreeMap::new(),
            tokens: HashMap::new(),
            secret_id: "planted-secret-id".to_owned(),
            login_ttl_s: 3600,
            login_renewable: true,
            logins: 0,
            trick: Trick::None,
            requests: Vec::new(),
            namespaces: Vec::new(),
        };
        let inside = Arc::new(Mutex::new(inside));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inside));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, inside, server }
    }

    pub fn put(&self, path: &str, fields: Value) {
        self.inside.lock().secrets.insert(path.to_owned(), fields);
    }

    pub fn token(&self, text: &str, state: TokenState) {
        self.inside.lock().tokens.insert(text.to_owned(), state);
    }

    pub fn trick(&self, trick: Trick) {
        self.inside.lock().trick = trick;
    }

    /// Requests that begin like that.
    pub fn asked(&self, begin: &str) -> usize {
        self.inside.lock().requests.iter().filter(|one| one.starts_with(begin)).count()
    }
}

fn error(status: StatusCode, words: &str) -> Response {
    (status, json!({ "errors": [words] }).to_string()).into_response()
}

async fn answer(
    State(inside): State<Arc<Mutex<Inside>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let trick = {
        let mut inside = inside.lock();
        inside.requests.push(format!("{method} {uri}"));
        inside.namespaces.push(header("x-vault-namespace"));
        let trick = inside.trick;
        if let Trick::Once(_) = trick {
            inside.trick = Trick::None;
        }
        trick
    };
    assert_eq!(header("x-vault-request"), "true");
    match trick {
        Trick::None => {}
        Trick::Sealed if uri.path() == "/v1/sys/health" => {
            return error(StatusCode::from_u16(299).unwrap(), "");
        }
        Trick::Sealed => return error(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed"),
        Trick::Silent => return std::future::pending().await,
        Trick::Endless => {
            let piece = || Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 64 << 10]));
            return Body::from_stream(futures::stream::repeat_with(piece)).into_response();
        }
        Trick::Garbage => return "planted, and no JSON".into_response(),
        Trick::Status(status) | Trick::Once(status) => {
            return error(StatusCode::from_u16(status).unwrap(), "planted");
        }
    }
    let mut inside = inside.lock();
    let inside = &mut *inside;
    let path = uri.path().trim_start_matches("/v1/");
    match path {
        "sys/health" => return json!({ "sealed": false, "version": "9.9" }).to_string().into_response(),
        "auth/approle/login" => {
            let login: Value = serde_json::from_slice(&body).unwrap();
            if login["role_id"] != "blockd" || login["secret_id"] != inside.secret_id.as_str() {
                return error(StatusCode::BAD_REQUEST, "invalid role or secret ID");
            }
            inside.logins += 1;
            let token = format!("planted-login-{}", inside.logins);
            let (ttl_s, renewable) = (inside.login_ttl_s, inside.login_renewable);
            inside.tokens.insert(token.clone(), TokenState::lasting(ttl_s, renewable));
            let auth = json!({ "client_token": token, "lease_duration": ttl_s, "renewable": renewable });
            return json!({ "auth": auth }).to_string().into_response();
        }
        _ => {}
    }
    let found = inside.tokens.get_mut(&header("x-vault-token"));
    let Some(token) = found.filter(|token| token.until.is_none_or(|until| until > Instant::now())) else {
        return error(StatusCode::FORBIDDEN, "permission denied");
    };
    match path {
        "auth/token/lookup-self" => {
            let left = token.until.map_or(0, |until| (until - Instant::now()).as_secs().max(1));
            json!({ "data": { "ttl": left, "renewable": token.renewable } }).to_string().into_response()
        }
        "auth/token/renew-self" if token.renewable => {
            *token = TokenState::lasting(token.ttl_s, true);
            let auth = json!({ "client_token": "x", "lease_duration": token.ttl_s, "renewable": true });
            json!({ "auth": auth }).to_string().into_response()
        }
        "auth/token/renew-self" => error(StatusCode::BAD_REQUEST, "lease is not renewable"),
        _ if !token.reads => error(StatusCode::FORBIDDEN, "permission denied"),
        path => match inside.secrets.get(path) {
            Some(fields) => {
                let data = json!({ "data": fields, "metadata": { "version": 7 } });
                json!({ "data": data }).to_string().into_response()
            }
            None => error(StatusCode::NOT_FOUND, ""),
        },
    }
}
