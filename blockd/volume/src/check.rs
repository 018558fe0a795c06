//! Consistency check of an open volume.
//!
//! Everything except data is read and compared with memory: `volume.meta`, the block sets, lengths and
//! identities of the data files, and the head's map with the tracked blocks. Data has no checksums. Reads and
//! writes continue; a merge pauses.

use crate::{
    io::files,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::Layer,
    meta::Meta,
    open::unnamed_files,
    volume::Volume,
};

/// Result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Checked layers.
    pub layers: u64,
    /// Layers that share data with another volume.
    pub shared_layers: u64,
    /// Checked interval sets.
    pub intervals: u64,
    /// Errors, one per line.
    pub findings: Vec<String>,
    /// Remains of interruptions that the next start removes, one per line.
    pub leftovers: Vec<String>,
}

impl Volume {
    /// Checks everything except data.
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
            // An uncertain commit may name them.
            Ok(_) if self.is_in_doubt() => {}
            Ok(unnamed) => found.findings.extend(
                unnamed
                    .iter()
                    .map(|path| format!("{} belongs to nothing; the next start removes it", path.display())),
            ),
        }
        found
    }

    /// Checks the block sets of a frozen layer, or the map and log of an open one.
    fn check_tracking(&self, layer: &Layer, findings: &mut Vec<String>) {
        match layer {
            Layer::Frozen(layer) if layer.data.lazy().is_some() => {
                let path = files::log_path(&self.dir, layer.file);
                if let Err(error) = crate::io::storage::metadata(&path) {
                    findings.push(format!("cannot look at {}: {error}", path.display()));
                }
            }
            Layer::Frozen(layer) => {
                match LayerSet::load(&self.dir, SetIdentity::of(self.id, &layer.entry())) {
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
                    if let Err(error) = crate::io::storage::metadata(&path) {
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
