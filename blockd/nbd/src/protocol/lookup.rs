//! Queries of a negotiation to the export catalog. A list is requested in parts, so that one with many
//! exports needs no more memory, however slowly it is read.

use std::sync::Arc;

use crate::device::{BlockDevice, Client, ExportCatalog, ExportError, ExportInfo};

/// The most exports of one part of a list.
pub(crate) const LIST_PART: usize = 1024;

/// A question to the export catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Some of the exports: the first of them, or those behind as many as were listed already.
    List {
        /// Number of exports to skip.
        skip: usize,
    },
    /// One export.
    Open {
        /// Name.
        name: String,
        /// The device is wanted, not only its description.
        keep_device: bool,
        /// The entry of the list is wanted too.
        describe: bool,
    },
    /// The metadata contexts of one export.
    Contexts {
        /// Name.
        name: String,
    },
}

/// Answer of the catalog.
#[derive(Debug)]
pub enum Answer {
    /// To [`Lookup::List`].
    List(Vec<ExportInfo>),
    /// To [`Lookup::Open`].
    Open(Result<Opened, ExportError>),
    /// To [`Lookup::Contexts`].
    Contexts(Result<Vec<String>, ExportError>),
}

/// An export that can be had.
#[derive(Debug)]
pub struct Opened {
    /// The device, if it is to be kept.
    pub device: Option<Arc<dyn BlockDevice>>,
    /// The name that was asked for.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Returns true if writes are refused.
    pub read_only: bool,
    /// The export's entry in the list, if it was wanted and is there.
    pub info: Option<ExportInfo>,
}

impl Lookup {
    /// Asks the catalog; may block.
    #[must_use]
    pub fn resolve(self, catalog: &dyn ExportCatalog, client: &Client) -> Answer {
        match self {
            Self::List { skip } => Answer::List(catalog.list_part(client, skip, LIST_PART)),
            Self::Open { name, keep_device, describe } => {
                Answer::Open(catalog.open(&name, client).map(|device| {
                    let info = if describe { catalog.describe(&name, client) } else { None };
                    Opened {
                        size_bytes: device.size_bytes(),
                        read_only: device.is_read_only(),
                        device: keep_device.then_some(device),
                        name,
                        info,
                    }
                }))
            }
            Self::Contexts { name } => {
                Answer::Contexts(catalog.open(&name, client).map(|device| device.meta_contexts()))
            }
        }
    }

    /// The answer when the catalog could not be asked.
    #[must_use]
    pub fn fail(self, reason: &str) -> Answer {
        let error = ExportError::Unavailable { reason: reason.to_owned() };
        match self {
            Self::List { .. } => Answer::List(Vec::new()),
            Self::Open { .. } => Answer::Open(Err(error)),
            Self::Contexts { .. } => Answer::Contexts(Err(error)),
        }
    }
}
