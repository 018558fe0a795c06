"""Workloads, states of the disk, and one pass of fio."""

import json
import mmap
import os
import subprocess
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Workload:
    """Load of fio's nbd engine on one export."""

    name: str
    text: str
    fio: tuple
    in_mib: bool = False

    @property
    def writes(self):
        return not any(option in ("--rw=randread", "--rw=read") for option in self.fio)


WORKLOADS = [
    Workload("randwrite", "4k randwrite, depth 32", ("--rw=randwrite", "--bs=4k", "--iodepth=32")),
    Workload("randread", "4k randread, depth 32", ("--rw=randread", "--bs=4k", "--iodepth=32")),
    Workload("depth1", "4k randrw, depth 1", ("--rw=randrw", "--bs=4k", "--iodepth=1")),
    Workload(
        "fsync32",
        "4k randwrite, fsync every 32",
        ("--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"),
    ),
    Workload("write1m", "1M write, depth 8", ("--rw=write", "--bs=1M", "--iodepth=8"), in_mib=True),
    Workload("read1m", "1M read, depth 8", ("--rw=read", "--bs=1M", "--iodepth=8"), in_mib=True),
    Workload(
        "mix",
        "70/30 mix, 4-64k, 4 connections",
        ("--rw=randrw", "--rwmixread=70", "--bsrange=4k-64k", "--iodepth=8", "--numjobs=4"),
    ),
]

# State of the disk at the start of a pass.
FRESH = "fresh"
ALLOCATED = "allocated"
SNAPSHOTS = "snapshots"
SCHEDULED = "scheduled"
STATES = {
    FRESH: "a new sparse disk",
    ALLOCATED: "every block written before",
    SNAPSHOTS: "every block written before, then 8 snapshots with scattered writes between them: "
    "the first touch of each block redirects (blockd only)",
    SCHEDULED: "every block written before, and a snapshot each second, with the last 5 kept "
    "(blockd only; 4k randwrite, for at least 10 s)",
}
# Enough for deletions and merges.
SCHEDULED_SECONDS = 10


def applies(workload, state):
    """Returns true if a state is measured with a workload."""
    return state != SCHEDULED or workload.name == "randwrite"

COMMON = ("--name=bench", "--group_reporting", "--randrepeat=1", "--randseed=42")


class FioFailed(Exception):
    """fio failed."""


def fio(uri, options, size_bytes, seconds=None):
    """Runs fio on a URI or the path of a file; `seconds` limits the duration, `size_bytes` the range. Returns the figures of its group."""
    target = ["--ioengine=nbd", f"--uri={uri}"] if "://" in uri else ["--ioengine=io_uring", f"--filename={uri}"]
    command = ["fio", *COMMON, *target, f"--size={size_bytes}", "--output-format=json", *options]
    if seconds:
        command.append(f"--runtime={seconds}")
    # Own session: Ctrl-C reaches only the benchmark, which stops its processes in order.
    run = subprocess.run(command, capture_output=True, text=True, start_new_session=True, cwd="/")
    start = run.stdout.find("{")
    if run.returncode != 0 or start < 0:
        text = (run.stderr or run.stdout).strip()[-2000:]
        raise FioFailed(f"{' '.join(command)}\nended with {run.returncode}: {text}")
    return json.loads(run.stdout[start:])["jobs"][0]


def touches_once(workload, state):
    """Returns true if the pass measures first writes of blocks."""
    return state in (FRESH, SNAPSHOTS) and workload.writes


def measure(uri, workload, state, size_bytes, seconds):
    """Runs one pass, which ends after `seconds`; one of first writes also when each block was written."""
    options = list(workload.fio)
    if state == SCHEDULED:
        seconds = max(seconds, SCHEDULED_SECONDS)
    if not touches_once(workload, state):
        options.append("--time_based")
    elif "--numjobs=4" in options:
        # The jobs together write the size of the disk.
        options.append(f"--io_size={size_bytes // 4}")
    job = fio(uri, options, size_bytes, seconds)
    directions = [job["read"], job["write"]]
    operations = sum(direction["total_ios"] for direction in directions)
    runtime_ms = max(direction["runtime"] for direction in directions)
    if operations == 0 or runtime_ms == 0:
        raise FioFailed(f"fio made no requests to {uri}")
    bytes_moved = sum(direction["io_bytes"] for direction in directions)
    # With group_reporting, the CPU share is the mean of the jobs.
    jobs = 4 if "--numjobs=4" in options else 1
    client_us = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
    latency = max(directions, key=lambda direction: direction["total_ios"])["clat_ns"]
    return {
        "operations": operations,
        "syncs": job.get("sync", {}).get("total_ios", 0),
        "bytes": bytes_moved,
        "runtime_ms": runtime_ms,
        "iops": operations * 1000 / runtime_ms,
        "mib_per_s": bytes_moved / MIB * 1000 / runtime_ms,
        "client_cpu_us_per_op": client_us / operations,
        "latency_us": {
            name: latency.get("percentile", {}).get(key, 0) / 1000
            for name, key in (("p50", "50.000000"), ("p99", "99.000000"), ("p999", "99.900000"))
        },
    }


def fill(uri, size_bytes):
    """Writes every block once, with data that is not all zeroes, and flushes."""
    fio(uri, ["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"], size_bytes)


def scatter(uri, size_bytes, seed):
    """Overwrites random blocks, 1 % of the disk."""
    count = max(size_bytes // 4096 // 100, 1)
    options = ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--number_ios={count}", f"--randseed={seed}", "--end_fsync=1"]
    fio(uri, options, size_bytes)


def warm_memory(size_bytes):
    """Allocates and frees the memory that a pass of first writes needs.

    The host of a virtual machine reclaims free memory (free page reporting) and returns it slowly: 1.8 ms per MiB were
    measured, and 0.3 ms for recently used memory. Without this, passes that need more page cache than the previous one
    are slower, with any server.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size_bytes * 5 // 4, flags=flags).close()


def settle():
    """Writes back dirty pages, so that this does not happen during the next pass."""
    os.sync()
