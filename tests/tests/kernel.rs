//! The kernel's NBD client, `/dev/nbdN`, in a virtual machine: attach, filesystems, crashes of the daemon
//! under load, more dirty data than memory, a power cut, and filesystems frozen for a snapshot
//! (`--freeze-fs`) by a daemon that dies; and probes of restore drills on the clone of a cloud snapshot.
//! `BLOCKD_TEST_LAZY_VM=1` adds a lazy volume that is mounted while it hydrates, which takes some minutes.

use crate::harness::{
    Bed,
    vm::{Machine, Parts},
};

/// The guest's memory, small, so that dirty data soon exceeds it.
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
    // The guest prints a line after its sync: lines read after the power cut count as well.
    let synced = console.iter().filter_map(|line| line.strip_prefix("VM-SYNCED ")?.parse().ok()).max();
    let synced: usize = synced.expect("synced files");
    let mut arguments = vec![format!("VM_SYNCED={synced}")];
    if std::env::var_os("BLOCKD_TEST_LAZY_VM").is_some() {
        arguments.push("VM_LAZY=1".to_owned());
    }
    machine.boot("after", &arguments).finish();
}

#[test]
fn drill_probe_uses_a_clone_that_the_kernel_mounts() {
    let Some(parts) = Parts::fetch() else { return };
    let bed = Bed::on_disk();
    Machine::new(parts, bed.dir(), MEMORY_MIB).boot("probe", &[]).finish();
}
