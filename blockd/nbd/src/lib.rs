//! NBD: the wire protocol, and an io_uring server for anything that implements [`BlockDevice`].
//!
//! A few ring threads own the sockets: each has an io_uring, receives requests, tries to carry them out at
//! once and sends the replies. What may block goes to worker threads and comes back through the ring thread's
//! mailbox.
//!
//! ```text
//! Server ── listener (unix, TCP) ──► ring_thread 0..N ── ring (io_uring)
//!                                        │
//!                                    connection ── handshake ── options          negotiation
//!                                        ├──────── transmission ── request       transmission
//!                                        │             ├─ outbox ── reply
//!                                        │             └─ worker 0..M ── BlockDevice, ExportCatalog
//!                                        └──────── tls ── tls_identity           after STARTTLS
//! ```
//!
//! Everything from `connection` downwards is without I/O: it is given bytes and results, and says what to do
//! next. `PROTOCOL.md` lists what of the protocol is served.

mod budget;
mod buffer_pool;
mod connection;
mod connection_count;
#[cfg(test)]
mod connection_tests;
pub mod constants;
mod device;
mod error;
mod flow;
mod flushes;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod handshake;
mod inbox;
mod linger;
mod listener;
mod lookup;
mod mailbox;
pub mod meta_context;
mod options;
mod outbox;
mod remote_budgets;
mod remote_reads;
pub mod reply;
pub mod request;
mod ring;
mod ring_thread;
mod server;
mod sparse_read;
mod spin;
#[cfg(test)]
#[path = "../tests/common/certs.rs"]
mod test_certs;
mod thread_end;
mod tls;
mod tls_identity;
mod tls_names;
mod tls_option;
mod transfer_deadline;
mod transmission;
mod wire;
mod worker;

pub use device::{
    Access, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo,
    OnFetched, Progress, StatusExtent, ZeroFlags,
};
pub use error::NbdError;
pub use server::{Server, ServerConfig};
pub use thread_end::FailureListener;
pub use tls_identity::{TlsError, TlsFiles, TlsIdentity, TlsMode};
pub use tls_names::certificate_names;
pub use tls_option::TlsStage;
