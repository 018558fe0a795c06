//! Log output: `tracing` events to stderr, as text or one JSON object per line, or to the systemd journal.

mod journal;

use crate::config::values::LogFormat;
use journal::JournalLayer;
use rustix::fs::fstat;
use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, registry, reload, util::SubscriberInitExt};

/// Reasons why the log could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level or filter is invalid.
    #[error(
        "invalid log level `{given}` ({what}): use error, warn, info, debug, trace or a filter such as info,blockd_cloud=debug"
    )]
    BadFilter {
        /// Input.
        given: String,
        /// Cause.
        what: String,
    },
    /// The journal was requested and is not available.
    #[error("cannot log to the journal at {}: {source}: use --log-format text", path.display())]
    Journal {
        /// Socket of the journal.
        path: PathBuf,
        /// Cause reported by the system.
        source: std::io::Error,
    },
    /// The log of this process was configured already.
    #[error("cannot set up the log: {0}")]
    Init(String),
}

impl LoggingError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Journal { .. })
    }
}

/// Replaces the filter.
type Refilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Setter of the filter of this process's log.
static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Checks a level or filter.
///
/// # Errors
/// It is invalid.
pub fn check_level(level: &str) -> Result<(), LoggingError> {
    filter(level).map(drop)
}

/// Sets the level or filter of the running log.
///
/// # Errors
/// It is invalid, or the log is not configured.
pub fn set_level(level: &str) -> Result<(), LoggingError> {
    let filter = filter(level)?;
    let Some(refilter) = REFILTER.get() else { return Ok(()) };
    refilter(filter).map_err(|error| LoggingError::Init(error.to_string()))
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let bad = |what: String| LoggingError::BadFilter { given: level.to_owned(), what };
    if level.trim().is_empty() {
        return Err(bad("empty".into()));
    }
    // `EnvFilter` would parse a single word as a module name and silence all other modules.
    let lone_word = level.bytes().all(|byte| byte.is_ascii_alphabetic());
    if lone_word && level.parse::<tracing::level_filters::LevelFilter>().is_err() {
        return Err(bad("unknown level".into()));
    }
    EnvFilter::builder().parse(level).map_err(|error| bad(error.to_string()))
}

/// Returns true if stderr is the stream to the journal that systemd created: `JOURNAL_STREAM` has its device
/// and inode number, and the parent process may have redirected stderr since.
fn stderr_is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let numbers = device.parse::<u64>().ok().zip(inode.parse::<u64>().ok());
    fstat(std::io::stderr()).is_ok_and(|found| numbers == Some((found.st_dev, found.st_ino)))
}

/// Configures the log of this process once, and returns the effective format.
///
/// # Errors
/// The level is invalid, the journal was requested and is not available, or the log is configured already.
pub fn init(level: &str, format: LogFormat) -> Result<LogFormat, LoggingError> {
    let filter = filter(level)?;
    let failed = |error: tracing_subscriber::util::TryInitError| LoggingError::Init(error.to_string());
    let is_journal = match format {
        LogFormat::Auto => stderr_is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()),
        format => format == LogFormat::Journal,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let is_set_up = move |format| {
        // The first and only setter.
        let _ = REFILTER.set(Box::new(move |filter| handle.reload(filter)));
        Ok(format)
    };
    if is_journal {
        match JournalLayer::open(Path::new(journal::SOCKET)) {
            Ok(layer) => {
                registry().with(filter).with(layer).try_init().map_err(failed)?;
                return is_set_up(LogFormat::Journal);
            }
            Err(source) if format == LogFormat::Journal => {
                return Err(LoggingError::Journal { path: journal::SOCKET.into(), source });
            }
            // stderr still leads to the journal as text.
            Err(_) => {}
        }
    }
    let layer = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(true);
            registry().with(filter).with(layer).try_init().map_err(failed)?;
            is_set_up(LogFormat::Json)
        }
        _ => {
            let layer = layer.with_ansi(std::io::stderr().is_terminal());
            registry().with(filter).with(layer).try_init().map_err(failed)?;
            is_set_up(LogFormat::Text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_level_is_distinguished_from_a_filter() {
        for good in ["info", "DEBUG", "off", "info,blockd_cloud=debug", "blockd_nbd=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,blockd=loud"] {
            let error = filter(bad).unwrap_err().to_string();
            assert!(error.contains("use error, warn"), "{error}");
        }
    }

    #[test]
    fn only_the_stream_created_by_systemd_is_the_journal() {
        let found = fstat(std::io::stderr()).unwrap();
        let (device, inode) = (found.st_dev, found.st_ino);
        assert!(stderr_is_journal(Some(&format!("{device}:{inode}"))));
        for other in [format!("{device}:{}", inode + 1), format!("{device}"), "x:y".into(), String::new()] {
            assert!(!stderr_is_journal(Some(&other)), "{other}");
        }
        assert!(!stderr_is_journal(None));
    }
}
