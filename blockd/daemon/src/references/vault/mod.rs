//! A Vault, or what speaks like it: fields of secrets in its key-value stores, version 2.
//!
//! What proves who asks is a token or a role (`AppRole`), from files or credentials of systemd that are read again each time, so that
//! a new one counts at once. A token is renewed when half of its time is over; where that is not possible, a role logs in anew
//! when the token ends or is refused. A token from a file is for whoever put it there to replace.

#[cfg(test)]
mod double;
mod http;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use super::{Fetched, ReferenceError, error::Trouble, local::Local};
use crate::config::VaultConfig;
use blockd_api::secrets::{VaultState, VaultStatus};
use http::{Again, Answer, Http};
use reqwest::{Method, StatusCode};
use session::{Session, Token};
use std::sync::Arc;
use wire::{Field, SecretAnswer};

/// The Vault of the configuration.
pub(super) struct Vault {
    config: VaultConfig,
    local: Arc<Local>,
    http: Http,
    session: tokio::sync::Mutex<Session>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("address", &self.config.address).finish_non_exhaustive()
    }
}

impl Vault {
    pub fn new(config: VaultConfig, local: Arc<Local>) -> Self {
        Self { http: Http::new(config.clone()), session: tokio::sync::Mutex::default(), config, local }
    }

    /// Reads a field of a secret.
    pub async fn read(&self, mount: &str, path: &str, field: &str) -> Result<Fetched, ReferenceError> {
        self.read_field(mount, path, field).await.map_err(|trouble| self.error(trouble))
    }

    fn error(&self, trouble: Trouble) -> ReferenceError {
        ReferenceError::Vault { address: self.config.address.to_string(), trouble }
    }

    async fn read_field(&self, mount: &str, path: &str, field: &str) -> Result<Fetched, Trouble> {
        let shown = format!("{mount}/{path}");
        let token = self.token(None).await?;
        let mut answer = self.get(mount, path, &token).await?;
        if is_refusal(answer.status) {
            // It ended, or was taken back; there may be another one.
            let other = self.token(Some(&token)).await?;
            if other.serial != token.serial {
                answer = self.get(mount, path, &other).await?;
            }
            if is_refusal(answer.status) {
                let status = answer.status.as_u16();
                return Err(match self.lookup(&other).await {
                    Ok(Some(_)) => Trouble::Policy { path: shown },
                    _ => self.refused_token(status),
                });
            }
        }
        match answer.status {
            StatusCode::OK => {}
            // Also a version that was deleted.
            StatusCode::NOT_FOUND => return Err(Trouble::Missing { path: shown }),
            status => return Err(Trouble::Failing { status: status.as_u16() }),
        }
        let SecretAnswer { data } = answer.read()?;
        let version = data.metadata.version;
        let mut fields = data.data;
        match fields.remove(field) {
            Some(Field::Text(text)) => Ok(Fetched { text, version }),
            Some(Field::Other) => Err(Trouble::NoText { field: field.to_owned(), path: shown }),
            None => {
                let known: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Trouble::Field { field: field.to_owned(), path: shown, known })
            }
        }
    }

    async fn get(&self, mount: &str, path: &str, token: &Token) -> Result<Answer, Trouble> {
        let path = ["v1", mount, "data", path];
        self.http.ask(Method::GET, &path, None, Some(&token.text), None, Again::Always).await
    }

    /// How it does.
    pub async fn status(&self) -> VaultStatus {
        let mut status = VaultStatus {
            address: self.config.address.to_string(),
            namespace: self.config.namespace.clone(),
            auth: self.auth(),
            state: VaultState::Ready,
            error: None,
            version: None,
            token_valid_until: None,
            token_renewable: None,
        };
        let found = match self.health().await {
            Ok(version) => {
                status.version = version;
                self.prove_token().await
            }
            Err(trouble) => Err(trouble),
        };
        match found {
            Ok((valid_until, renewable)) => {
                status.token_valid_until = valid_until;
                status.token_renewable = Some(renewable);
            }
            Err(trouble) => {
                status.state = match &trouble {
                    Trouble::Sealed | Trouble::Uninitialized => VaultState::Sealed,
                    Trouble::Unreachable { .. } | Trouble::Timeout { .. } => VaultState::Unreachable,
                    Trouble::Token { .. } | Trouble::Login { .. } | Trouble::Proof(_) => VaultState::Refused,
                    _ => VaultState::Failed,
                };
                status.error = Some(self.error(trouble).to_string());
            }
        }
        status
    }

    async fn health(&self) -> Result<Option<String>, Trouble> {
        // With statuses of their own for what is no failure of the request.
        let query = "standbyok=true&perfstandbyok=true&sealedcode=299&uninitcode=298";
        let path = ["v1", "sys", "health"];
        let answer = self.http.ask(Method::GET, &path, Some(query), None, None, Again::Always).await?;
        match answer.status.as_u16() {
            200 => Ok(answer.read::<wire::Health>()?.version),
            299 => Err(Trouble::Sealed),
            298 => Err(Trouble::Uninitialized),
            status => Err(Trouble::Failing { status }),
        }
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
}
