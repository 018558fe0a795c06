//! Queries of a negotiation to the export catalog. A list is requested in pages, which bounds its memory even
//! if the client reads slowly.

use std::sync::Arc;

use crate::device::{BlockDevice, Client, ExportCatalog, ExportError, ExportInfo};

/// Maximum number of exports in a page of the list.
pub(crate) const LIST_PART: usize = 1024;

/// Query to the export catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// One page of the export list.
    List {
        /// Number of exports to skip.
        skip: usize,
    },
    /// One export.
    Open {
        /// Name.
        name: String,
        /// Return the device, not only its properties.
        keep_device: bool,
        /// Return the entry in the export list too.
        describe: bool,
    },
    /// The metadata contexts of one export.
    Contexts {
        /// Name.
        name: String,
    },
}

/// Result of a [`Lookup`].
#[derive(Debug)]
pub enum LookupResult {
    /// Result of [`Lookup::List`].
    List(Vec<ExportInfo>),
    /// Result of [`Lookup::Open`].
    Open(Result<OpenedExport, ExportError>),
    /// Result of [`Lookup::Contexts`].
    Contexts(Result<Vec<String>, ExportError>),
}

/// Opened export.
#[derive(Debug)]
pub struct OpenedExport {
    /// The device, if requested.
    pub device: Option<Arc<dyn BlockDevice>>,
    /// The requested name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// True if the server refuses writes.
    pub read_only: bool,
    /// The entry in the export list, if requested and listed.
    pub info: Option<ExportInfo>,
}

impl Lookup {
    /// Queries the catalog; may block.
    #[must_use]
    pub fn resolve(self, catalog: &dyn ExportCatalog, client: &Client) -> LookupResult {
        match self {
            Self::List { skip } => LookupResult::List(catalog.list_part(client, skip, LIST_PART)),
            Self::Open { name, keep_device, describe } => {
                LookupResult::Open(catalog.open(&name, client).map(|device| {
                    let info = if describe { catalog.describe(&name, client) } else { None };
                    OpenedExport {
                        size_bytes: device.size_bytes(),
                        read_only: device.is_read_only(),
                        device: keep_device.then_some(device),
                        name,
                        info,
                    }
                }))
            }
            Self::Contexts { name } => {
                LookupResult::Contexts(catalog.open(&name, client).map(|device| device.meta_contexts()))
            }
        }
    }

    /// Returns true if the query may wait for the network.
    pub(crate) fn is_remote(&self, catalog: &dyn ExportCatalog) -> bool {
        match self {
            Self::List { .. } => false,
            Self::Open { name, .. } | Self::Contexts { name } => catalog.is_remote(name),
        }
    }

    /// Returns the result of a query that failed for `reason`.
    #[must_use]
    pub fn fail(self, reason: &str) -> LookupResult {
        let error = ExportError::Unavailable { reason: reason.to_owned() };
        match self {
            Self::List { .. } => LookupResult::List(Vec::new()),
            Self::Open { .. } => LookupResult::Open(Err(error)),
            Self::Contexts { .. } => LookupResult::Contexts(Err(error)),
        }
    }
}
