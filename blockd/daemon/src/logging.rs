//! The log: `tracing` events to stderr, as text or as one JSON object a line, or to the journal of systemd.

mod journal;

use crate::config::{Config, LogFormat};
use journal::JournalLayer;
use rustix::fs::fstat;
use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, registry, reload, util::SubscriberInitExt};

pub(crate) use journal::EVENT_TARGET;

/// The log level or filter could not be understood, or a log was set up already.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Not a level and not a filter.
    #[error(
        "log level `{given}` is not understood ({what}): use error, warn, info, debug, trace or a filter such as info,blockd_cloud=debug"
    )]
    BadFilter {
        /// What was given.
        given: String,
        /// Why it is none.
        what: String,
    },
    /// The journal was asked for, and there is none.
    #[error("cannot log to the journal at {}: {source}: use --log-format text", path.display())]
    Journal {
        /// Where it should listen.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// This process has a log already.
    #[error("cannot set up the log: {0}")]
    Init(String),
}

impl LoggingError {
    /// Whether trying again can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Journal { .. })
    }
}

/// Has another filter hold.
type Refilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The filter of this process's log.
static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Refuses what is no level and no filter.
///
/// # Errors
/// It is none.
pub fn check_level(level: &str) -> Result<(), LoggingError> {
    filter(level).map(drop)
}

/// Has another level or filter hold from now on.
///
/// # Errors
/// It is none, or there is no log.
pub fn set_level(level: &str) -> Result<(), LoggingError> {
    let filter = filter(level)?;
    let Some(refilter) = REFILTER.get() else { return Ok(()) };
    refilter(filter).map_err(|error| LoggingError::Init(error.to_string()))
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let bad = |what: String| LoggingError::BadFilter { given: level.to_owned(), what };
    if level.trim().is_empty() {
        return Err(bad("it is empty".into()));
    }
    // A lone word would be taken for the name of a module, and everything else would be silent.
    let lone_word = level.bytes().all(|byte| byte.is_ascii_alphabetic());
    if lone_word && level.parse::<tracing::level_filters::LevelFilter>().is_err() {
        return Err(bad("it is no level".into()));
    }
    EnvFilter::builder().parse(level).map_err(|error| bad(error.to_string()))
}

/// Whether stderr goes to the journal: systemd says with `JOURNAL_STREAM` (device and inode) what it made for
/// that, and whoever started this process may have put something else in its place.
fn stderr_is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let numbers = device.parse::<u64>().ok().zip(inode.parse::<u64>().ok());
    fstat(std::io::stderr()).is_ok_and(|found| numbers == Some((found.st_dev, found.st_ino)))
}

/// Sets the log of this process up, once, and says what it is.
///
/// # Errors
/// The level is not understood, the journal was asked for and is not there, or there is a log already.
pub fn init(config: &Config) -> Result<LogFormat, LoggingError> {
    let filter = filter(&config.log_level)?;
    let failed = |error: tracing_subscriber::util::TryInitError| LoggingError::Init(error.to_string());
    let is_journal = match config.log_format {
        LogFormat::Auto => stderr_is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()),
        format => format == LogFormat::Journal,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let is_set_up = move |format| {
        // It is the only log, so nothing was there before.
        let _ = REFILTER.set(Box::new(move |filter| handle.reload(filter)));
        Ok(format)
    };
    if is_journal {
        match JournalLayer::open(Path::new(journal::SOCKET)) {
            Ok(layer) => {
                registry().with(filter).with(layer).try_init().map_err(failed)?;
                return is_set_up(LogFormat::Journal);
            }
            Err(source) if config.log_format == LogFormat::Journal => {
                return Err(LoggingError::Journal { path: journal::SOCKET.into(), source });
            }
            // Text goes there as well.
            Err(_) => {}
        }
    }
    let layer = fmt::layer().with_writer(std::io::stderr);
    match config.log_format {
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
    fn levels_and_filters_are_told_from_typos() {
        for good in ["info", "DEBUG", "off", "info,blockd_cloud=debug", "blockd_nbd=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,blockd=loud"] {
            let error = filter(bad).unwrap_err().to_string();
            assert!(error.contains("use error, warn"), "{error}");
        }
    }

    #[test]
    fn only_the_very_stream_that_systemd_made_is_the_journal() {
        let found = fstat(std::io::stderr()).unwrap();
        let (device, inode) = (found.st_dev, found.st_ino);
        assert!(stderr_is_journal(Some(&format!("{device}:{inode}"))));
        for other in [format!("{device}:{}", inode + 1), format!("{device}"), "x:y".into(), String::new()] {
            assert!(!stderr_is_journal(Some(&other)), "{other}");
        }
        assert!(!stderr_is_journal(None));
    }
}
