//! Change anomalies of an ext4 filesystem that the kernel mounts over NBD: days of normal work without a
//! false alarm, then encryption in place and a mass deletion, by the clock of a virtual machine.

use crate::harness::{
    Bed,
    vm::{Machine, Parts},
};

/// The guest's memory.
const MEMORY_MIB: u32 = 1024;
/// Days without `BLOCKD_BENCH_DAYS`: one week more than the detector's warm-up.
const DAYS: &str = "16";

#[test]
#[ignore = "takes minutes to hours: tools/bench anomalies [DAYS]"]
fn encryption_over_nbd_is_found_without_false_alarms() {
    let Some(parts) = Parts::fetch() else { return };
    let bed = Bed::on_disk();
    let days = std::env::var("BLOCKD_BENCH_DAYS").unwrap_or_else(|_| DAYS.to_owned());
    let machine = Machine::new(parts, bed.dir(), MEMORY_MIB);
    let console = machine.boot("anomalies", &[format!("VM_DAYS={days}")]).finish();
    for line in console.iter().filter(|line| line.starts_with("VM-NORMAL") || line.starts_with("VM-FOUND")) {
        println!("{line}");
    }
}
