"""tools/bench freeze: stall time of writers during a group freeze, compared with qemu."""

import json
import os
import shutil
import subprocess

import bench
import place
import qemu

GIB, TIB = 1 << 30, 1 << 40
# Goals: the barrier of one volume and of a group; the stall time of writes on an idle machine and under full
# load.
HOLD_ONE_NS, HOLD_GROUP_NS = 100_000, 1_000_000
ADDED_IDLE_NS, ADDED_LOADED_NS = 1_000_000, 5_000_000

EPILOG = """\
Each freeze is one write barrier over all volumes, in one process, without sockets; writers overwrite 1024 random blocks of each
volume. HOLD is the time from the first lock request to the last release; each kind ends with a complete freeze. QUIET-P99 is
the p99 latency of 4 KiB writes outside of freezes, NEAR-P99 that of writes in flight at a barrier or started within 10 ms after
it; the difference, ADDED, is the cost of a freeze. CALL is the duration of the complete freeze, mostly syncs, during which writers
continue: CALL-P99 is the p99 of these writes.

WORST is the longest write in flight at a barrier, one per freeze; CONTROL-P99 is the same at as many random times without a
barrier. ON-CPU-P99 is WORST-P99 without the writer's wait for a CPU: with as many busy writers as CPUs, the freezing thread
preempts one of them for a scheduler slice. Lines are printed as they are measured.

qemu: one transaction of block-dirty-bitmap-add for all disks, sent over QMP to a qemu-storage-daemon whose disks are
written over NBD; CALL is the time until the response, WORST approximately the same. Skipped without qemu-storage-daemon.

As root, the benchmark uses its own ext4 filesystem in a sparse file, mounted without discard.

Goals: HOLD p99 up to 100 us for one volume and 1 ms for a group; ADDED up to 1 ms with one writer, 5 ms under full
load, for each size.
"""


def arguments():
    parser = bench.arguments("freeze", "Measures the stall time of writers during group freezes.", EPILOG)
    parser.add_argument("--quick", action="store_true", help="3 seconds of each kind")
    parser.add_argument("--seconds", type=int, help="duration of each kind [10; qemu: half of that]")
    parser.add_argument("--volumes", default="1,8,32", help="group sizes, separated by commas [1,8,32]")
    parser.add_argument("--writers", type=int, default=os.cpu_count(), help="threads under full load [one per core]")
    parser.add_argument("--engine", help="engine binary [built]")
    parser.add_argument("--no-qemu", action="store_true", help="skip qemu")
    given = parser.parse_args()
    given.seconds = given.seconds or (3 if given.quick else 10)
    given.volumes = [int(text) for text in given.volumes.split(",")]
    return given


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0


def time_text(nanos):
    for limit, unit, text in ((1e4, 1, "ns"), (1e7, 1e3, "us"), (1e10, 1e6, "ms")):
        if nanos < limit:
            return f"{nanos / unit:.0f} {text}"
    return f"{nanos / 1e9:.0f} s"


def size_text(size):
    return f"{size // TIB} TiB" if size >= TIB else f"{size // GIB} GiB"


def row_of(found):
    """Returns the cells of one kind."""
    freezes = found["freezes"]
    writes = [one["worstWriteNs"] for one in freezes]
    control = percentile(found["controlWorstWriteNs"], 99)
    added = max(0, found["nearWriteNs"]["p99"] - found["quietWriteNs"]["p99"]) if "nearWriteNs" in found else None
    holds = [one["holdNs"] for one in freezes if "holdNs" in one]
    hold_goal = HOLD_ONE_NS if found["volumes"] == 1 else HOLD_GROUP_NS
    added_goal = ADDED_IDLE_NS if found["writers"] == 1 else ADDED_LOADED_NS
    found["summary"] = {"addedP99Ns": added}
    if holds:
        met = percentile(holds, 99) <= hold_goal and added <= added_goal
        found["summary"] |= {"holdP99Ns": percentile(holds, 99), "met": met}
    return [
        found["who"],
        str(found["volumes"]),
        size_text(found["sizeBytes"]),
        str(found["writers"]),
        str(len(freezes)),
        *(time_text(percentile(holds, percent)) if holds else "-" for percent in (50, 99, 100)),
        *(time_text(percentile(writes, percent)) for percent in (50, 99)),
        time_text(percentile([one["worstWithoutWaitNs"] for one in freezes], 99)) if holds else "-",
        time_text(control),
        time_text(percentile([one["callNs"] for one in freezes], 50)),
        *(time_text(found[kind]["p99"]) if kind in found else "-" for kind in WRITES),
        "-" if added is None else time_text(added),
        f"{found['writesPerSecond'] / 1000:.0f}k",
        ("yes" if met else "NO") if holds else "-",
    ]


HEADER = ["WHO", "VOLUMES", "SIZE", "WRITERS", "FREEZES", "HOLD-P50", "HOLD-P99", "HOLD-MAX"]
HEADER += ["WORST-P50", "WORST-P99", "ON-CPU-P99", "CONTROL-P99", "CALL-P50", "CALL-P99", "NEAR-P99", "QUIET-P99", "ADDED", "WRITES/S", "GOAL"]
# The distributions behind CALL-P99, NEAR-P99 and QUIET-P99.
WRITES = ["duringWriteNs", "nearWriteNs", "quietWriteNs"]


def show(row):
    print("  ".join(cell.ljust(max(7, len(name))) for cell, name in zip(row, HEADER)).rstrip(), flush=True)


def main():
    given = arguments()
    engine = given.engine or bench.build("-p", "blockd-benches", "--bin", "freeze").with_name("freeze")
    all_found = []
    peer = None if given.no_qemu else shutil.which("qemu-storage-daemon")

    def measured(who, measure, count, size, writers):
        folder = work / who
        folder.mkdir()
        found = {"who": who, **measure(folder, count, size, writers)}
        shutil.rmtree(folder)
        all_found.append(found)
        show(row_of(found))

    def blockd(folder, count, size, writers):
        command = [engine, folder, count, size, given.seconds, writers]
        done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def qemu_peer(folder, count, size, writers):
        return qemu.measure(folder, count, size, max(1, given.seconds // 2), writers)

    try:
        with place.working_directory(given.dir) as work:
            show(HEADER)
            for count in given.volumes:
                for size in (GIB, 16 * TIB):
                    for writers in sorted({1, given.writers}):
                        measured("blockd", blockd, count, size, writers)
                        if peer and writers == given.writers:
                            measured("qemu", qemu_peer, count, size, writers)
    finally:
        bench.write_figures(given, "freeze", all_found)
    if not peer:
        print("qemu skipped: qemu-storage-daemon is missing: apt-get install qemu-utils")


if __name__ == "__main__":
    main()
