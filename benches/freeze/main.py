"""tools/bench freeze: how long freezing a group of volumes holds writers back, beside what qemu takes for the same."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import qemu

GIB, TIB = 1 << 30, 1 << 40
# What is to hold: the barrier by itself, for one volume and for a group; and what a write may be held back in addition,
# on an idle machine and under full load.
HOLD_ONE_NS, HOLD_GROUP_NS = 100_000, 1_000_000
ADDED_IDLE_NS, ADDED_LOADED_NS = 1_000_000, 5_000_000

EPILOG = """\
Each freeze is one barrier over all volumes, in one process, without sockets. HOLD is how long the barrier was held,
from the first lock asked for to the last one released. WRITE is the longest 4 KiB write that was under way during
the barrier, CONTROL that at as many instants without one: their difference is what the freeze adds. CALL is how long
the whole freeze took, which is mostly syncs, and during which writers go on.

qemu: one transaction of block-dirty-bitmap-add for all disks, sent over QMP to a qemu-storage-daemon whose disks are
written over NBD; CALL is the time until it is answered. Left out where there is no qemu-storage-daemon.

Goals: HOLD p99 up to 100 us for one volume and 1 ms for a group; added to writes p99 up to 1 ms with one writer,
5 ms under full load; whatever the size.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="tools/bench freeze",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures how long freezing groups of volumes holds writers back.",
        epilog=EPILOG,
    )
    parser.add_argument("--quick", action="store_true", help="20 freezes of each kind instead of 200")
    parser.add_argument("--freezes", type=int, help="freezes of each kind [200]")
    parser.add_argument("--volumes", default="1,8,32", help="sizes of groups, with commas [1,8,32]")
    parser.add_argument("--writers", type=int, default=os.cpu_count(), help="threads under full load [one per core]")
    parser.add_argument("--dir", help="where to work; a new directory below it is made and removed [$TMPDIR or /var/tmp]")
    parser.add_argument("--json", help="where the figures go [freeze-bench.json below the build directory]")
    parser.add_argument("--engine", help="the engine's binary [it is built]")
    parser.add_argument("--no-qemu", action="store_true", help="leave qemu out")
    given = parser.parse_args()
    given.freezes = given.freezes or (20 if given.quick else 200)
    given.volumes = [int(text) for text in given.volumes.split(",")]
    return given


def build(target):
    root = Path(__file__).resolve().parents[2]
    command = ["cargo", "build", "--release", "--locked", "-p", "blockd-benches", "--bin", "freeze"]
    subprocess.run(command, cwd=root, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(target.parent)})
    return target / "freeze"


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


def blockd_row(found):
    freezes = found["freezes"]
    holds = [one["holdNs"] for one in freezes]
    writes = [one["worstWriteNs"] for one in freezes]
    added = max(0, percentile(writes, 99) - percentile(found["controlWorstWriteNs"], 99))
    hold_goal = HOLD_ONE_NS if found["volumes"] == 1 else HOLD_GROUP_NS
    added_goal = ADDED_IDLE_NS if found["writers"] == 1 else ADDED_LOADED_NS
    met = percentile(holds, 99) <= hold_goal and added <= added_goal
    found["summary"] = {"holdP99Ns": percentile(holds, 99), "addedP99Ns": added, "met": met}
    return [
        "blockd",
        str(found["volumes"]),
        size_text(found["sizeBytes"]),
        str(found["writers"]),
        *(time_text(percentile(holds, percent)) for percent in (50, 99, 100)),
        *(time_text(percentile(writes, percent)) for percent in (50, 99)),
        time_text(percentile(found["controlWorstWriteNs"], 99)),
        time_text(added),
        time_text(percentile([one["callNs"] for one in freezes], 50)),
        "yes" if met else "NO",
    ]


def qemu_row(found):
    calls = [one["callNs"] for one in found["freezes"]]
    writes = [one["worstWriteNs"] for one in found["freezes"]]
    control = percentile(found["controlWorstWriteNs"], 99)
    return [
        "qemu",
        str(found["volumes"]),
        size_text(found["sizeBytes"]),
        str(found["writers"]),
        "-",
        "-",
        "-",
        *(time_text(percentile(writes, percent)) for percent in (50, 99)),
        time_text(control),
        time_text(max(0, percentile(writes, 99) - control)),
        time_text(percentile(calls, 50)),
        "-",
    ]


HEADER = ["WHO", "VOLUMES", "SIZE", "WRITERS", "HOLD-P50", "HOLD-P99", "HOLD-MAX"]
HEADER += ["WRITE-P50", "WRITE-P99", "CONTROL-P99", "ADDED-P99", "CALL-P50", "GOAL"]


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main():
    given = arguments()
    target = Path(os.environ["BLOCKD_BENCH_TARGET"])
    engine = Path(given.engine) if given.engine else build(target)
    work = Path(tempfile.mkdtemp(prefix="blockd-bench-", dir=given.dir or os.environ.get("TMPDIR", "/var/tmp")))
    rows, all_found = [HEADER], []
    peer = None if given.no_qemu else shutil.which("qemu-storage-daemon")
    try:
        for count in given.volumes:
            for size in (GIB, 16 * TIB):
                for writers in sorted({1, given.writers}):
                    print(f"{count} x {size_text(size)}, {writers} writers", file=sys.stderr)
                    place = work / "blockd"
                    place.mkdir()
                    command = [engine, place, count, size, given.freezes, writers]
                    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE)
                    shutil.rmtree(place)
                    found = {"who": "blockd", **json.loads(done.stdout)}
                    rows.append(blockd_row(found))
                    all_found.append(found)
                    if peer and writers == given.writers:
                        place.mkdir()
                        found = {"who": "qemu", **qemu.measure(place, count, size, given.freezes, writers)}
                        shutil.rmtree(place)
                        rows.append(qemu_row(found))
                        all_found.append(found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table(rows)
    if not peer:
        print("qemu-storage-daemon is not there, so qemu is left out: apt-get install qemu-utils")
    path = Path(given.json) if given.json else target.parent / "freeze-bench.json"
    path.write_text(json.dumps(all_found))
    print(f"All figures: {path}")


if __name__ == "__main__":
    main()
