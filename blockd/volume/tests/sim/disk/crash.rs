//! Disk state after a power cut.

use super::{
    Rng,
    node::Node,
    simulated::{Disk, State},
};
use std::{fs, io, os::unix::fs::FileExt, path::Path};

const PAGE_BYTES: usize = 4096;

impl Disk {
    /// Writes a possible state after a power cut to the new directory `into`: all durable data, and a random
    /// selection of the rest.
    ///
    /// # Errors
    /// The underlying filesystem fails.
    pub fn power_cut(&self, rng: &mut Rng, into: &Path) -> io::Result<()> {
        self.state.lock().write_survivors(0, into, rng)
    }
}

impl State {
    fn write_survivors(&self, dir: usize, into: &Path, rng: &mut Rng) -> io::Result<()> {
        fs::create_dir(into)?;
        let Some(Node::Dir(names)) = self.nodes.get(dir) else { return Ok(()) };
        // All names old, all new, or each at random.
        let mode = rng.below(4);
        for (name, history) in names {
            let newest = history.len() - 1;
            let version = match mode {
                0 => 0,
                1 => newest,
                _ => rng.below(newest as u64 + 1) as usize,
            };
            let Some(number) = history[version] else { continue };
            let into = into.join(name);
            match &self.nodes[number] {
                Node::Dir(_) => self.write_survivors(number, &into, rng)?,
                Node::File(file) => write_sparse(&into, &file.survivor(rng))?,
            }
        }
        Ok(())
    }
}

fn write_sparse(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.set_len(content.len() as u64)?;
    for (number, page) in content.chunks(PAGE_BYTES).enumerate() {
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(page, (number * PAGE_BYTES) as u64)?;
        }
    }
    Ok(())
}
