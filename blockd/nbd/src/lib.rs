#![doc = include_str!("../README.md")]

// server      listener (unix, TCP) ──► ring_thread 0..N ── ring (io_uring)      I/O and threads
//                 worker 0..M ── BlockDevice, ExportCatalog
// connection      connection ── transmission ── reply_queue                     state of a connection
// tls                 └── session ── identity                                   after STARTTLS
// protocol                └── handshake ── options, request, reply              messages, negotiation

mod config;
mod connection;
mod device;
mod error;
mod protocol;
mod server;
#[cfg(test)]
extern crate self as blockd_nbd;
#[cfg(test)]
#[path = "../tests/common/certs.rs"]
mod test_certs;
#[cfg(test)]
#[path = "../tests/common/device.rs"]
mod test_device;
#[cfg(test)]
#[path = "../tests/common/wire.rs"]
mod test_wire;
mod tls;

pub use config::ServerConfig;
pub use device::{
    Access, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo,
    OnFetched, Progress, StatusExtent, ZeroFlags,
};
pub use error::NbdError;
pub use protocol::constants;
pub use server::Server;
pub use server::thread_end::FailureListener;
pub use tls::identity::{TlsError, TlsFiles, TlsIdentity, TlsMode};
pub use tls::names::certificate_names;
