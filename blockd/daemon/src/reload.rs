//! Taking up a configuration that was changed, while the daemon runs: all of what can be, or nothing.

use crate::{
    config::{Config, ConfigError},
    daemon::{Daemon, with_sources},
    db::NewEvent,
    error::one_line,
    logging::{self, LoggingError},
};
use blockd_api::{events::Severity, status::ReloadFailure};
use blockd_nbd::{TlsError, TlsIdentity};
use jiff::Timestamp;

/// Why a new configuration is not taken up: nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// It cannot be read, or cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its level of the log is none.
    #[error(transparent)]
    Level(#[from] LoggingError),
    /// Its certificates cannot be used.
    #[error("{}", with_sources(.0))]
    Tls(TlsError),
    /// A fault of the daemon.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ReloadError {
    /// Whether trying again can help, without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Tls(error) if error.is_retryable())
    }
}

impl Daemon {
    /// Has what can change of a configuration hold: who may do what, the certificates, and the level of the
    /// log. `running` is what holds now, and is what holds afterwards; what takes a restart is named in the
    /// log.
    ///
    /// # Errors
    /// Something in it cannot be used: then nothing of it is.
    pub async fn reload(&self, running: &mut Config, new: Config) -> Result<(), ReloadError> {
        logging::check_level(&new.log_level)?;
        let control = self.control.identity.clone().zip(new.control.tls_files());
        let nbd = self.certificates.clone();
        let read = move || -> Result<(), TlsError> {
            if let Some((_, files)) = &control {
                TlsIdentity::load(files.clone())?;
            }
            nbd.check_but(control.as_ref().map(|(identity, _)| identity))?;
            if let Some((identity, files)) = control {
                identity.reload_from(files)?;
            }
            nbd.renew(true);
            Ok(())
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|error| ReloadError::Internal(error.to_string()))?.map_err(ReloadError::Tls)?;
        logging::set_level(&new.log_level)?;
        *self.control.roles.write() = new.control.clone();
        self.access.replace(new.nbd_access.clone());

        // What is served where was decided at the start.
        let mut holds = running.clone();
        holds.log_level.clone_from(&new.log_level);
        holds.nbd_access.clone_from(&new.nbd_access);
        holds.control.roles.clone_from(&new.control.roles);
        if self.control.identity.is_some() && new.control.listen.is_some() {
            holds.control.certificate.clone_from(&new.control.certificate);
            holds.control.key.clone_from(&new.control.key);
            holds.control.client_ca.clone_from(&new.control.client_ca);
            holds.control.client_crl.clone_from(&new.control.client_crl);
        }
        for socket in &mut holds.control.sockets {
            let wanted = new.control.sockets.iter().find(|new| new.path == socket.path);
            if let Some(wanted) = wanted.filter(|new| new.group == socket.group) {
                socket.role = wanted.role;
            }
        }
        let waiting = differences(&holds, &new);
        *running = holds;
        tracing::info!("the configuration was read again");
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "the configuration has changes that hold only after a restart"
            );
        }
        Ok(())
    }
}

/// The keys, as `TABLE.KEY`, in which two configurations differ.
fn differences(a: &Config, b: &Config) -> Vec<String> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (a, b) = (table(a), table(b));
    let mut found = Vec::new();
    compare("", &a, &b, &mut found);
    found
}

fn compare(prefix: &str, a: &toml::Table, b: &toml::Table, found: &mut Vec<String>) {
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        match (a.get(key), b.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                compare(&format!("{prefix}{key}."), a, b, found);
            }
            (a, b) if a == b => {}
            _ => found.push(format!("{prefix}{key}")),
        }
    }
}

/// Takes a configuration up. If it cannot be, the log, the events and the status tell so.
pub async fn on_hangup(daemon: &Daemon, running: &mut Config, new: Result<Config, ConfigError>) {
    let taken_up = match new {
        Ok(new) => daemon.reload(running, new).await,
        Err(error) => Err(error.into()),
    };
    let core = &daemon.core;
    let Err(error) = taken_up else {
        *core.reload_failed.lock() = None;
        return;
    };
    // What the parser of the file says has a line for each line that it shows.
    let (at, error) = (Timestamp::now(), one_line(&error.to_string()));
    tracing::error!(%error, "the new configuration is not used, and nothing has changed");
    let message = format!("the new configuration is not used, and nothing has changed: {error}");
    *core.reload_failed.lock() = Some(ReloadFailure { at, error });
    let event = NewEvent::new(at, Severity::Error, "reload-failed", message);
    if let Err(error) = core.db.run(move |tx| event.insert(tx)).await {
        tracing::warn!(%error, "a reload that failed is no event");
    }
    core.events.wake();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reload_names_changed_tables() {
        let a = Config::default();
        let mut b = a.clone();
        assert!(differences(&a, &b).is_empty());
        b.task_history += 1;
        b.control.listen = Some(([127, 0, 0, 1], 1).into());
        b.secrets.cache_s += 1;
        assert_eq!(differences(&a, &b), ["control.listen", "secrets.cache_s", "task_history"]);
    }
}
