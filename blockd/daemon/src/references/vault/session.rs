//! The token: where it comes from, how long it is good, and how it is kept so.

use super::{Again, Trouble, Vault, is_refusal, wire};
use crate::{config::Proof, references::local::place};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// How long before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(5);
/// A token that was just made and is refused is not the reason.
const NEW: Duration = Duration::from_secs(1);
/// How often it is looked at least whether the token must be renewed.
const LOOK: Duration = Duration::from_secs(30);
/// How soon it is looked again at the earliest.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A token, and what is known of it.
pub(super) struct Token {
    pub text: Zeroizing<String>,
    /// Tells it from others.
    pub serial: u64,
    since: Instant,
    /// None if it does not end, or it is not known when.
    lease: Option<Lease>,
    renewable: bool,
}

#[derive(Clone, Copy)]
struct Lease {
    from: Instant,
    duration: Duration,
}

impl Lease {
    /// None for a token that does not end.
    fn of(seconds: u64) -> Option<Self> {
        // Longer ones end after this daemon, or are renewed before.
        let duration = Duration::from_secs(seconds.min(10 * 365 * 86_400));
        (seconds > 0).then(|| Self { from: Instant::now(), duration })
    }

    fn left(self) -> Duration {
        self.duration.saturating_sub(self.from.elapsed())
    }

    fn is_over(self) -> bool {
        // Of a short one less: it must be of some use.
        self.left() <= MARGIN.min(self.duration / 4)
    }

    fn renewal_in(self) -> Duration {
        (self.duration / 2).saturating_sub(self.from.elapsed())
    }
}

/// The token that is in use.
#[derive(Default)]
pub(super) struct Session {
    token: Option<Arc<Token>>,
    serial: u64,
    /// When and why nobody could log in last.
    failed: Option<(Instant, Trouble)>,
    /// It was said that it cannot be kept good.
    told: bool,
}

impl Session {
    fn put(&mut self, text: Zeroizing<String>, lease: Option<Lease>, renewable: bool) -> Arc<Token> {
        self.serial += 1;
        let token = Token { text, serial: self.serial, since: Instant::now(), lease, renewable };
        let token = Arc::new(token);
        self.token = Some(Arc::clone(&token));
        token
    }
}

impl Vault {
    /// What proves who asks, in words.
    pub(super) fn auth(&self) -> String {
        match self.config.token() {
            Some(proof) => format!("token from {}", place(&proof)),
            None => "AppRole".to_owned(),
        }
    }

    /// The token of a role, or of a file, is refused.
    pub(super) fn refused_token(&self, status: u16) -> Trouble {
        match (self.config.token(), self.config.secret_id()) {
            (Some(proof), _) => Trouble::Token { status, place: place(&proof) },
            (None, proof) => Trouble::Login { status, place: place_of_secret_id(proof.as_ref()) },
        }
    }

    /// A token that may be good; another one than `refused`, if there is one.
    pub(super) async fn token(&self, refused: Option<&Token>) -> Result<Arc<Token>, Trouble> {
        let asked = Instant::now();
        let mut session = self.session.lock().await;
        if let Some(proof) = self.config.token() {
            let text = self.proof(proof).await?;
            let known = session.token.clone().filter(|known| known.text == text);
            return Ok(known.unwrap_or_else(|| session.put(text, None, false)));
        }
        if let Some(token) = &session.token {
            let is_over = token.lease.is_some_and(Lease::is_over);
            let is_refused = refused.is_some_and(|refused| refused.serial == token.serial);
            if !is_over && (!is_refused || token.since.elapsed() < NEW) {
                return Ok(Arc::clone(token));
            }
        }
        session.token = None;
        // Those who waited for a login that failed do not each wait for another one.
        if let Some((_, trouble)) = session.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(trouble.clone());
        }
        let found = self.log_in(&mut session).await;
        session.failed = found.as_ref().err().map(|trouble| (Instant::now(), trouble.clone()));
        found
    }

    async fn proof(&self, proof: Proof) -> Result<Zeroizing<String>, Trouble> {
        let local = Arc::clone(&self.local);
        let read = tokio::task::spawn_blocking(move || local.proof(&proof)).await;
        let read = read.map_err(|error| Trouble::Client { what: error.to_string() })?;
        read.map_err(|error| Trouble::Proof(Box::new(error)))
    }

    async fn log_in(&self, session: &mut Session) -> Result<Arc<Token>, Trouble> {
        #[derive(serde::Serialize)]
        struct Login<'a> {
            role_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            secret_id: Option<&'a str>,
        }

        let proof = self.config.secret_id();
        let secret_id = match proof.clone() {
            Some(proof) => Some(self.proof(proof).await?),
            None => None,
        };
        let role_id = self.config.role_id.as_deref().unwrap_or_default();
        let login = Login { role_id, secret_id: secret_id.as_ref().map(|text| text.as_str()) };
        let body = serde_json::to_vec(&login).map_err(|_| Trouble::NotUnderstood)?;
        let body = Some(Zeroizing::new(body));
        let path = ["v1", "auth", self.config.approle_mount.as_str(), "login"];
        let answer = self.http.ask(Method::POST, &path, None, None, body, Again::Unsent).await?;
        match answer.status {
            StatusCode::OK => {
                let wire::AuthAnswer { auth } = answer.read()?;
                let token = auth.client_token.filter(|token| !token.is_empty());
                let token = Zeroizing::new(token.ok_or(Trouble::NotUnderstood)?.expose().to_owned());
                tracing::debug!(lease_s = auth.lease_duration, "logged in to the Vault");
                session.told = false;
                Ok(session.put(token, Lease::of(auth.lease_duration), auth.renewable))
            }
            // What role or secret id is wrong with is a 400 in most versions.
            StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::UNAUTHORIZED
            | StatusCode::NOT_FOUND => {
                let status = answer.status.as_u16();
                Err(Trouble::Login { status, place: place_of_secret_id(proof.as_ref()) })
            }
            status => Err(Trouble::Failing { status: status.as_u16() }),
        }
    }

    /// What the Vault says of the token itself; none if it does not take it.
    pub(super) async fn lookup(&self, token: &Token) -> Result<Option<wire::Lookup>, Trouble> {
        let path = ["v1", "auth", "token", "lookup-self"];
        let answer = self.http.ask(Method::GET, &path, None, Some(&token.text), None, Again::Always).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.read::<wire::LookupAnswer>()?.data)),
            status if is_refusal(status) => Ok(None),
            status => Err(Trouble::Failing { status: status.as_u16() }),
        }
    }

    /// Whether the token is good, until when, and whether it can be renewed.
    pub(super) async fn prove_token(&self) -> Result<(Option<Timestamp>, bool), Trouble> {
        let mut token = self.token(None).await?;
        let mut found = self.lookup(&token).await?;
        if found.is_none() {
            let other = self.token(Some(&token)).await?;
            if other.serial != token.serial {
                found = self.lookup(&other).await?;
                token = other;
            }
        }
        let Some(found) = found else { return Err(self.refused_token(403)) };
        self.note(&token, found.ttl, found.renewable).await;
        let left = SignedDuration::from_secs(i64::try_from(found.ttl).unwrap_or(i64::MAX));
        let until = (found.ttl > 0).then(|| Timestamp::now().checked_add(left).ok()).flatten();
        Ok((until, found.renewable))
    }

    /// Notes how long a token is good, if it is the one in use still.
    async fn note(&self, token: &Token, ttl_s: u64, renewable: bool) {
        let mut session = self.session.lock().await;
        if session.token.as_ref().is_some_and(|known| known.serial == token.serial) {
            let (text, since) = (token.text.clone(), token.since);
            let lease = Lease::of(ttl_s);
            session.token = Some(Arc::new(Token { text, serial: token.serial, since, lease, renewable }));
        }
    }

    /// Renews the token if it is time; says when to look again.
    pub async fn keep_token_good(&self) -> Duration {
        match self.renew_if_due().await {
            Ok(next) => {
                self.session.lock().await.told = false;
                next.clamp(LOOK_AGAIN, LOOK)
            }
            Err(trouble) => {
                let mut session = self.session.lock().await;
                let passes = trouble.passes();
                let error = self.error(trouble);
                // Once: whoever needs it says so each time.
                if std::mem::replace(&mut session.told, true) || passes {
                    tracing::debug!(%error, "the token is not kept good");
                } else {
                    tracing::warn!(%error, "the token is not kept good");
                }
                LOOK
            }
        }
    }

    async fn renew_if_due(&self) -> Result<Duration, Trouble> {
        let token = match self.config.token() {
            Some(_) => {
                let token = self.token(None).await?;
                if token.lease.is_none() && !token.renewable {
                    // Not known yet, or one that does not end.
                    self.prove_token().await?;
                }
                self.session.lock().await.token.clone()
            }
            // It logs in when it is needed.
            None => self.session.lock().await.token.clone(),
        };
        let Some(token) = token else { return Ok(LOOK) };
        let Some(lease) = token.lease.filter(|_| token.renewable) else { return Ok(LOOK) };
        if !lease.renewal_in().is_zero() {
            return Ok(lease.renewal_in());
        }
        let path = ["v1", "auth", "token", "renew-self"];
        let body = Some(Zeroizing::new(b"{}".to_vec()));
        let answer = self.http.ask(Method::POST, &path, None, Some(&token.text), body, Again::Always).await?;
        match answer.status {
            StatusCode::OK => {
                let wire::AuthAnswer { auth } = answer.read()?;
                tracing::debug!(lease_s = auth.lease_duration, "the token of the Vault is renewed");
                self.note(&token, auth.lease_duration, auth.renewable).await;
                Ok(Duration::from_secs(auth.lease_duration) / 2)
            }
            status if self.config.token().is_some() => Err(self.refused_token(status.as_u16())),
            _ => {
                // A role logs in anew at its end.
                self.note(&token, lease.left().as_secs().max(1), false).await;
                Ok(LOOK)
            }
        }
    }
}

fn place_of_secret_id(proof: Option<&Proof>) -> String {
    proof.map_or_else(|| "[vault], which names none".to_owned(), place)
}
