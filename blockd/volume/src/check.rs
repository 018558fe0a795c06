//! Looking at an open volume: whether what lies in its folder is what it believes to have.
//!
//! Everything but the data is read and compared with what is in memory: `volume.meta`, the sets, the lengths
//! and identities of the data files, the head's map against what is noted for its log. Data has no checksums
//! of its own. Reads and writes go on meanwhile; a merge makes way.

use crate::{
    files,
    layer_set::{LayerSet, SetIdentity},
    meta::Meta,
    open::unnamed_files,
    stack::Layer,
    volume::Volume,
};
use blockd_extent::BLOCK_SIZE_BYTES;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// How many layers were looked at.
    pub layers: u64,
    /// How many of them share data with another volume.
    pub shared_layers: u64,
    /// How many interval sets were read.
    pub intervals: u64,
    /// What is wrong, a line each; empty if nothing is.
    pub findings: Vec<String>,
    /// What the next start puts in order and nobody misses, a line each: what an interruption left.
    pub leftovers: Vec<String>,
}

impl Volume {
    /// Checks everything but the data.
    pub fn check(&self) -> Checked {
        let _no_merge = self.keep_merges_out();
        let admin = self.admin.lock();
        let mut found = Checked::default();
        if let Some(reason) = self.failure() {
            found.findings.push(format!("it acknowledges nothing more: {reason}"));
        }
        match Meta::load(&self.dir) {
            Err(error) => found.findings.push(error.to_string()),
            Ok(meta) if meta != *admin && !self.is_in_doubt() => {
                let path = self.dir.join(files::META);
                found.findings.push(format!("{} is not what the open volume stored", path.display()));
            }
            Ok(_) => {}
        }
        for layer in self.current().layers() {
            found.layers += 1;
            found.shared_layers += u64::from(layer.data().are_shared().unwrap_or(false));
            layer.data().check(layer.size_bytes(), &mut found.findings);
            self.check_tracking(layer, &mut found.findings);
        }
        for &epoch in &admin.intervals {
            found.intervals += 1;
            if let Err(error) = LayerSet::load_of_any_size(&self.dir, self.interval_identity(epoch)) {
                found.findings.push(error.to_string());
            }
        }
        match unnamed_files(&self.dir, &admin) {
            Err(error) => found.findings.push(error.to_string()),
            // A commit in doubt may name them.
            Ok(_) if self.is_in_doubt() => {}
            Ok(unnamed) => found.findings.extend(
                unnamed
                    .iter()
                    .map(|path| format!("{} belongs to nothing; the next start removes it", path.display())),
            ),
        }
        found
    }

    /// The sets of a frozen layer, the map and log of an open one.
    fn check_tracking(&self, layer: &Layer, findings: &mut Vec<String>) {
        match layer {
            Layer::Frozen(layer) if layer.data.lazy().is_some() => {
                let path = files::log_path(&self.dir, layer.file);
                if let Err(error) = crate::storage::identity_and_len(&path) {
                    findings.push(format!("cannot look at {}: {error}", path.display()));
                }
            }
            Layer::Frozen(layer) => {
                let identity = SetIdentity {
                    volume: self.id,
                    file: layer.file,
                    generation: layer.generation,
                    blocks: layer.size_bytes / BLOCK_SIZE_BYTES,
                };
                match LayerSet::load(&self.dir, identity) {
                    Err(error) => findings.push(error.to_string()),
                    Ok(set) if set != layer.set => {
                        let path = files::set_path(&self.dir, layer.file, layer.generation);
                        findings.push(format!("{} is not the set that the open volume uses", path.display()));
                    }
                    Ok(_) => {}
                }
            }
            Layer::Open(head) => {
                for path in [files::map_path(&self.dir, head.epoch), files::log_path(&self.dir, head.epoch)] {
                    if let Err(error) = crate::storage::identity_and_len(&path) {
                        findings.push(format!("cannot look at {}: {error}", path.display()));
                    }
                }
                let blocks = head.disagreements();
                if blocks > 0 {
                    let path = files::map_path(&self.dir, head.epoch);
                    let what = "does not agree with what is noted for the log";
                    findings.push(format!("{} {what}: {blocks} blocks", path.display()));
                }
            }
        }
    }
}
