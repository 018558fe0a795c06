//! Reload of the configuration: all reloadable settings, or none.

use crate::{
    config::{Config, ConfigError},
    daemon::Daemon,
    logging::{self, LoggingError},
};
use blockd_api::{
    events::{EventKind, Severity},
    status::ReloadFailure,
    with_sources,
};
use blockd_catalog::NewEvent;
use blockd_engine::error::one_line;
use blockd_nbd::{TlsError, TlsIdentity};
use jiff::Timestamp;

/// Error of a reload, which changed no setting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// Unreadable or invalid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Invalid log level.
    #[error(transparent)]
    Level(#[from] LoggingError),
    /// Unusable certificates.
    #[error("{}", with_sources(.0))]
    Tls(TlsError),
    /// Internal error.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ReloadError {
    /// Returns true if a retry can succeed without a change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Tls(error) if error.is_retryable())
    }
}

impl Daemon {
    /// Applies the reloadable settings: roles, certificates and the log level. Updates `running`, and logs
    /// settings that need a restart.
    ///
    /// # Errors
    /// A setting is invalid: then none is applied.
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

        // The listeners were determined at the start.
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
        tracing::info!("configuration reloaded");
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "some changes of the configuration take effect only after a restart"
            );
        }
        Ok(())
    }
}

/// Returns the keys, as `TABLE.KEY`, in which two configurations differ.
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

/// Reloads the configuration on SIGHUP. A failure is in the log, the events and the status.
pub async fn on_hangup(daemon: &Daemon, running: &mut Config, new: Result<Config, ConfigError>) {
    let reloaded = match new {
        Ok(new) => daemon.reload(running, new).await,
        Err(error) => Err(error.into()),
    };
    let engine = &daemon.engine;
    let Err(error) = reloaded else {
        *daemon.served.reload_failure.lock() = None;
        return;
    };
    // The parser's message has several lines.
    let (at, error) = (Timestamp::now(), one_line(&error.to_string()));
    tracing::error!(%error, "reload failed on configuration: no setting was changed");
    let message = format!("reload failed on configuration: {error}; no setting was changed");
    *daemon.served.reload_failure.lock() = Some(ReloadFailure { failed_at: at, cause: error });
    let event = NewEvent::new(at, Severity::Error, EventKind::ReloadFailed, message);
    if let Err(error) = engine.db.run(move |tx| event.insert(tx)).await {
        tracing::warn!(%error, "recording the event of a failed reload failed");
    }
    engine.events.wake();
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
