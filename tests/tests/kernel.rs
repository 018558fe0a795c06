//! The kernel's own NBD client, `/dev/nbdN`, in a virtual machine: attach, file systems, crashes of the
//! daemon under load, more dirty data than memory, a power cut, filesystems that are frozen for a snapshot
//! (`--freeze-fs`) by a daemon that dies meanwhile; with `BLOCKD_TEST_LAZY_VM=1`, which takes some minutes
//! more, a lazy volume that is mounted and used while it hydrates.

use crate::harness::{
    Bed,
    vm::{Machine, Parts},
};

/// The guest's memory: little, so that more is soon dirtied than there is.
const MEMORY_MIB: u32 = 320;
/// Number of files synced before the power cut.
const SYNCED: usize = 20;

#[test]
fn attached_volume_survives_crashes_pressure_and_power_cut() {
    let Some(parts) = Parts::fetch() else { return };
    let bed = Bed::on_disk();
    let machine = Machine::new(parts, bed.dir(), MEMORY_MIB);

    let mut guest = machine.boot("life", &[]);
    guest.wait_for("VM-STEP the power is cut");
    guest.wait_for(&format!("VM-SYNCED {SYNCED}"));
    let console = guest.cut_power();
    // Lines that were on their way when the power was cut count: the guest had written them after its sync.
    let synced = console.iter().filter_map(|line| line.strip_prefix("VM-SYNCED ")?.parse().ok()).max();
    let synced: usize = synced.expect("files that were synced");
    let mut arguments = vec![format!("VM_SYNCED={synced}")];
    if std::env::var_os("BLOCKD_TEST_LAZY_VM").is_some() {
        arguments.push("VM_LAZY=1".to_owned());
    }
    machine.boot("after", &arguments).finish();
}
