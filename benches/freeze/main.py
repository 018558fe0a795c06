"""tools/bench freeze: how long freezing a group of volumes holds writers back, beside what qemu takes for the same."""

import json
import os
import shutil
import subprocess

import bench
import place
import qemu

GIB, TIB = 1 << 30, 1 << 40
# What is to hold: the barrier by itself, for one volume and for a group; and what a write may be held back in addition,
# on an idle machine and under full load.
HOLD_ONE_NS, HOLD_GROUP_NS = 100_000, 1_000_000
ADDED_IDLE_NS, ADDED_LOADED_NS = 1_000_000, 5_000_000

EPILOG = """\
Each freeze is one barrier over all volumes, in one process, without sockets; writers overwrite 1024 blocks of each volume
at random, spread over all of it. HOLD is how long the barrier was held, from the first lock asked for to the last one
released; a kind goes on until a freeze that has begun is over. QUIET-P99 is 99 % of all 4 KiB writes outside of freezes, NEAR-P99 of
those that were under way at a barrier or began in the 10 ms behind it: their difference, ADDED, is what a freeze adds. CALL is how
long the whole freeze took, which is mostly syncs, and during which writers go on: CALL-P99 is 99 % of the writes meanwhile.

WORST is the longest of all writes that were under way at the instant of the barrier, for each freeze one, and CONTROL-P99 that at
as many instants without one. ON-CPU-P99 is WORST-P99 without the time for which that writer waited for a CPU: where there are as
many busy writers as CPUs, the freezing thread takes one from them for a slice of the scheduler's, and a write was under
way there. Lines are printed as they are measured.

qemu: one transaction of block-dirty-bitmap-add for all disks, sent over QMP to a qemu-storage-daemon whose disks are
written over NBD; CALL is the time until it is answered, WORST is about that. Left out where there is no qemu-storage-daemon.

As root, it works on an ext4 of its own, in a sparse file that is mounted without discard.

Goals: HOLD p99 up to 100 us for one volume and 1 ms for a group; ADDED up to 1 ms with one writer, 5 ms under full
load, for each size.
"""


def arguments():
    parser = bench.arguments("freeze", "Measures how long freezing groups of volumes holds writers back.", EPILOG)
    parser.add_argument("--quick", action="store_true", help="3 seconds of each kind")
    parser.add_argument("--seconds", type=int, help="how long each kind is frozen again and again [10; qemu: half of that]")
    parser.add_argument("--volumes", default="1,8,32", help="sizes of groups, with commas [1,8,32]")
    parser.add_argument("--writers", type=int, default=os.cpu_count(), help="threads under full load [one per core]")
    parser.add_argument("--engine", help="the engine's binary [it is built]")
    parser.add_argument("--no-qemu", action="store_true", help="leave qemu out")
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
    """What is printed of one kind: a cell for each column."""
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
        print("qemu-storage-daemon is not there, so qemu is left out: apt-get install qemu-utils")


if __name__ == "__main__":
    main()
