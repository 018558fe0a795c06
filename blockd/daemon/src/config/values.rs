//! Values of single keys.

use blockd_nbd::TlsMode;
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// Format and destination of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// To the systemd journal if stderr is connected to it, otherwise as text.
    #[default]
    Auto,
    /// Text for a terminal, to stderr.
    Text,
    /// One JSON object a line, to stderr.
    Json,
    /// Records with fields, to the systemd journal.
    Journal,
}

/// Address of an NBD listener.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NbdAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// TLS policy of TCP listeners.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdTls {
    /// Never.
    Off,
    /// If the client asks for it.
    Allow,
    /// Always.
    Require,
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("tcp://") {
            return address.parse().map(Self::Tcp).map_err(|_| {
                format!("invalid NBD address `{text}`: tcp:// needs ADDRESS:PORT, such as tcp://127.0.0.1:10809 or tcp://[::1]:10809")
            });
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => {
                Err(format!("invalid NBD address `{text}`: use tcp://ADDRESS:PORT or unix:///ABSOLUTE/PATH"))
            }
        }
    }
}

impl TryFrom<String> for NbdAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NbdAddress> for String {
    fn from(address: NbdAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl From<NbdTls> for TlsMode {
    fn from(tls: NbdTls) -> Self {
        match tls {
            NbdTls::Off => Self::Off,
            NbdTls::Allow => Self::Allow,
            NbdTls::Require => Self::Require,
        }
    }
}
