//! Consistency check of an open volume.
//!
//! All metadata is read and compared with memory: `volume.meta`, the block sets, lengths and inodes of the
//! data files, and the head's map with its log. It reads no data. Reads and writes continue;
//! a merge pauses.

use crate::{
    io::files,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::Layer,
    meta::Meta,
    open::unreferenced_files,
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
    /// Errors, one line each.
    pub findings: Vec<String>,
    /// Files and torn log records of interrupted operations, which the next start removes; one line each.
    pub leftovers: Vec<String>,
}

impl Volume {
    /// Checks all metadata of the volume.
    pub fn check(&self) -> Checked {
        let _no_merge = self.pause_merges();
        let admin = self.admin.lock();
        let mut found = Checked::default();
        if let Some(reason) = self.failure() {
            found.findings.push(format!("volume stopped: {reason}"));
        }
        match Meta::load(&self.dir) {
            Err(error) => found.findings.push(error.to_string()),
            Ok(meta) if meta != *admin && !self.is_in_doubt() => {
                let path = self.dir.join(files::META);
                found.findings.push(format!("{} differs from the state of the open volume", path.display()));
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
        match unreferenced_files(&self.dir, &admin) {
            Err(error) => found.findings.push(error.to_string()),
            // An in-doubt commit may reference them.
            Ok(_) if self.is_in_doubt() => {}
            Ok(unreferenced) => found.findings.extend(
                unreferenced
                    .iter()
                    .map(|path| format!("{} is unreferenced; the next start removes it", path.display())),
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
                    findings.push(format!("stat failed on {}: {error}", path.display()));
                }
            }
            Layer::Frozen(layer) => {
                match LayerSet::load(&self.dir, SetIdentity::of(self.id, &layer.entry())) {
                    Err(error) => findings.push(error.to_string()),
                    Ok(set) if !layer.has_sets(&set) => {
                        let path = files::set_path(&self.dir, layer.file, layer.generation);
                        findings.push(format!(
                            "{} differs from the block set of the open volume",
                            path.display()
                        ));
                    }
                    Ok(_) => {}
                }
            }
            Layer::Open(head) => {
                let path = files::map_path(&self.dir, head.epoch);
                if let Err(error) = crate::io::storage::metadata(&path) {
                    findings.push(format!("stat failed on {}: {error}", path.display()));
                }
                match head.count_log_mismatches() {
                    Ok(0) => {}
                    Ok(blocks) => {
                        let path = files::log_path(&self.dir, head.epoch);
                        findings.push(format!("{} differs from the map in {blocks} blocks", path.display()));
                    }
                    Err(error) => findings.push(error.to_string()),
                }
            }
        }
    }
}
