//! The log: `tracing` events to stderr, as text or as one JSON object a line.

use crate::config::{Config, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

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
    /// This process has a log already.
    #[error("cannot set up the log: {0}")]
    Init(String),
}

impl LoggingError {
    /// Whether trying again can help.
    pub fn is_retryable(&self) -> bool {
        false
    }
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

/// Sets the log of this process up; once.
///
/// # Errors
/// The level is not understood, or there is a log already.
pub fn init(config: &Config) -> Result<(), LoggingError> {
    let filter = filter(&config.log_level)?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).finish().try_init(),
    };
    done.map_err(|error| LoggingError::Init(error.to_string()))
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
}
