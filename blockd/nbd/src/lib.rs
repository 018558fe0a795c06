#![doc = include_str!("../README.md")]

// server      listener (unix, TCP) ──► ring_thread 0..N ── ring (io_uring)      I/O and threads
//                 worker 0..M ── BlockDevice, ExportCatalog
// connection      connection ── transmission ── outbox                          state of a connection
// tls                 └── session ── identity                                   after STARTTLS
// protocol                └── handshake ── options, request, reply              messages, negotiation

mod connection;
mod device;
mod error;
mod protocol;
mod server;
#[cfg(test)]
#[path = "../tests/common/certs.rs"]
mod test_certs;
#[cfg(test)]
#[path = "../tests/common/wire.rs"]
mod test_wire;
mod tls;

pub use device::{
    Access, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo,
    OnFetched, Progress, StatusExtent, ZeroFlags,
};
pub use error::NbdError;
pub use protocol::constants;
pub use server::thread_end::FailureListener;
pub use server::{Server, ServerConfig};
pub use tls::identity::{TlsError, TlsFiles, TlsIdentity, TlsMode};
pub use tls::names::certificate_names;
