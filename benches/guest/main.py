"""tools/bench guest: latency of guest writes during backups and scrubs of the volume, and during restore drills."""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench as shared
import subject
from bench import MIB

# Ratio of p99 beside a load and alone.
KINDS = ("alone", "beside", "limit")
GOALS = {"backup": 1.5, "scrub": 1.2, "drill": 1.2}
# Rate of the plain reader before a scrub was measured, and the time in which it starts.
READER_MIB_PER_S, READER_START_S = 100, 1
PERCENTILES = ("50.000000", "99.000000", "99.900000")
# Interval of requests for the progress of a task. A backup or a drill of this volume takes less than a second.
POLL_S = {"backup": 0.05, "scrub": 0.5, "drill": 0.05}
# Pause between two drills. A drill of this volume takes some 60 ms, and its start and end cost more than its reads.
DRILL_PAUSE_S = 1
# Timeout of merges after a backup.
MERGE_TIMEOUT_S = 120

EPILOG = """\
A volume is filled, half of it with incompressible data. Then fio writes random 4 KiB blocks over NBD for SECONDS: alone, and during consecutive
full, encrypted backups of the volume to a directory. Both alternate for ROUNDS, in reverse order in every second round. A pass with backups starts when
the first backup reads; between two backups is only the time to request the next. Before each pass, merges and deletions of the previous pass are
completed and dirty pages written back, and a snapshot is taken and deleted, so that all passes write to blocks that were not written since.

With --load scrub, consecutive scrubs of the volume run beside the writes instead. With --load drill it is a restore drill each second, of another volume:
an ext4 filesystem with files of half of SIZE.

A third pass shows the limit of the machine. With --load scrub, fio reads a file of the same size instead of the scrub, with direct reads of 64 KiB
at the lowest priority, at the rate of the scrubs of the passes before. With other loads it is a second pass alone: its ratios are noise.

  alone, beside  p50, p99 and p99.9 of the writes, in microseconds; medians over the rounds
  limit          the same of the third pass
  ratio          p99 beside / p99 alone of each round: the median, and the worst and the best round
  load           number of tasks that ended, and MiB/s of blocks that backups and scrubs processed

With --iops 0 fio writes at the maximum rate. The store is a directory on the same disk unless --store names another one. With --cold (as root)
the page cache is dropped before each pass, so that backups read from the disk.

Goal: the median of the ratios is at most 1.5 during backups, and 1.2 during scrubs and drills.
"""


def size(text):
    units = {"M": 20, "G": 30}
    digits, unit = text[:-1], text[-1:].upper()
    if not digits.isdigit() or unit not in units or int(digits) << units[unit] < 64 * MIB:
        raise argparse.ArgumentTypeError(f"{text} is not a size of at least 64M, such as 2G")
    return int(digits) << units[unit]


def number(least):
    def parse(text):
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} on")
        return int(text)

    return parse


def arguments():
    parser = shared.arguments("guest", "Measures 4k random writes of a guest, alone and during a load of the daemon.", EPILOG)
    parser.add_argument("--load", choices=sorted(GOALS), default="backup", help="load beside the writes [backup]")
    parser.add_argument("--data", type=size, default=2 << 30, help="size of the volume, completely filled with data [2G]")
    parser.add_argument("--seconds", type=number(1), default=10, help="duration of each pass [10]")
    parser.add_argument("--rounds", type=number(1), default=5, help="passes of each kind [5]")
    parser.add_argument("--iops", type=number(0), default=2000, help="writes per second; 0 for the maximum rate [2000]")
    parser.add_argument("--depth", type=number(1), default=1, help="writes in flight [1]")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each pass")
    parser.add_argument("--priority", choices=("low", "normal"), help="task_priority of the daemon [its default]")
    parser.add_argument("--blockd", help="blockd binary; blockctl in the same directory [the release build]")
    parser.add_argument("--store", help="parent of the temporary store directory [the same as --dir]")
    return parser.parse_args()


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def drop_caches():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError as error:
        raise shared.Failed(f"--cold: dropping the page cache failed: {error}") from error


def make_image(path, size_bytes):
    """Writes chunks of 64 KiB, half of them incompressible."""
    source = random.Random(7)
    with open(path, "wb") as out:
        for _ in range(size_bytes // (128 << 10)):
            out.write(source.randbytes(64 << 10))
            out.write(source.randbytes(64) * 1024)


class Api(http.client.HTTPConnection):
    """Connection to the daemon: a process for each request would take CPU time from the guest."""

    def __init__(self, blockd):
        super().__init__("localhost", timeout=shared.START_TIMEOUT_S)
        self.path = blockd.dir / "blockd.sock"

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def call(self, method, path, body=None):
        self.request(method, f"/v1/{path}", json.dumps(body) if body else None, {"Content-Type": "application/json"})
        reply = self.getresponse()
        text = reply.read()
        if reply.status >= 300:
            raise shared.Failed(f"{method} {path}: {text.decode(errors='replace')}")
        return json.loads(text)


class Load:
    """Consecutive tasks of the daemon while the context is active, with their progress."""

    def __init__(self, blockd, path, body, poll_s, pause_s=0):
        self.api, self.path, self.body, self.poll_s, self.pause_s = Api(blockd), path, body, poll_s, pause_s
        self.is_over, self.reads, self.failed = threading.Event(), threading.Event(), None
        self.count, self.done_bytes = 0, 0

    def run(self):
        try:
            while not self.is_over.is_set():
                self.run_once()
                self.count += 1
                self.is_over.wait(self.pause_s)
        except Exception as error:
            self.failed = error
        self.reads.set()

    def run_once(self):
        """Runs a task; adds its progress up to the end of the pass."""
        started = self.api.call("POST", self.path, self.body)
        task = started.get("items", [started])[0]["taskId"]
        before = 0
        while True:
            seen = self.api.call("GET", f"tasks/{task}")
            if not self.is_over.is_set():
                self.done_bytes += seen["processedBytes"] - before
                before = seen["processedBytes"]
            if seen["phase"] == "data":
                self.reads.set()
            if seen["completedAt"]:
                self.reads.set()
                if not seen["state"].endswith("-Done"):
                    raise shared.Failed(f"a task ended as {seen['state']}: {seen['error']}")
                return
            time.sleep(self.poll_s)

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        if not self.reads.wait(shared.START_TIMEOUT_S):
            self.failed = self.failed or shared.Failed("the task does not start to read")
        return self

    def __exit__(self, *_):
        # Without other load, the running task ends soon.
        self.is_over.set()
        self.thread.join()
        if self.failed:
            raise self.failed


class Reader:
    """A plain program that reads a file with direct reads while the context is active."""

    count, done_bytes = 0, 0

    def __init__(self, path):
        self.command = ["nice", "-n", "19", "fio", "--name=reader", "--ioengine=psync", "--rw=read", "--bs=64k", "--direct=1"]
        self.command += ["--readonly", f"--filename={path}", "--time_based", "--runtime=1h"]
        self.mib_per_s = READER_MIB_PER_S

    def __enter__(self):
        command = [*self.command, f"--rate={max(round(self.mib_per_s), 1)}m"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/")
        time.sleep(READER_START_S)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def make_filesystem(path, size_bytes):
    """Creates an ext4 image with files of half of its size, a quarter of them incompressible."""
    tree = path.with_suffix(".tree")
    source = random.Random(8)
    for nth in range(size_bytes // (2 * MIB)):
        file = tree / str(nth % 16) / str(nth)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.randbytes(MIB) if nth % 4 == 0 else source.randbytes(64) * (MIB // 64))
    tool = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([tool, "-q", "-t", "ext4", "-d", tree, path, f"{size_bytes // MIB}M"], check=True)
    shutil.rmtree(tree)


class Bench:
    def __init__(self, given, blockd, directory, store):
        self.given, self.directory = given, directory
        config = directory / "blockd.toml"
        config.write_text(f'task_priority = "{given.priority}"\n' if given.priority else "")
        self.blockd = subject.Blockd(blockd, directory, "--config", config)
        try:
            image = directory / "image"
            make_image(image, given.data)
            self.blockd.make_volume("vm", given.data, image)
            self.reader = Reader(image) if given.load == "scrub" else None
            if not self.reader:
                image.unlink()
            options = ["--provider", "local", "--path", store, "--encryption-passphrase", "bench"]
            self.blockd.ctl("credentials", "create", "nas", *options)
            if given.load == "drill":
                make_filesystem(image, given.data)
                self.blockd.make_volume("drilled", given.data, image)
                image.unlink()
                self.blockd.ctl("cloudsnap", "backup", "drilled", "--wait")
                self.drilled = self.blockd.ctl("cloudsnap", "list", "--src", "drilled")["items"][0]["cloudSnapshotId"]
        except BaseException:
            self.blockd.stop()
            raise

    def stop(self):
        self.blockd.stop()

    def layers(self):
        return self.blockd.ctl("volume", "inspect", "vm")["layers"]

    def has_removed_files(self):
        """Returns true while the daemon has removed files of layers open: closing them frees their space, with many requests to the disk."""
        for fd in Path(f"/proc/{self.blockd.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(fd)
                if target.startswith(str(self.blockd.dir)) and target.endswith(" (deleted)"):
                    return True
        return False

    def settle(self):
        """Completes merges and deletions, so that the next write to each block is the first one since a freeze."""
        for snap in self.blockd.ctl("cloudsnap", "list", "--src", "vm")["items"]:
            self.blockd.ctl("cloudsnap", "delete", "--snap", snap["cloudSnapshotId"], "--wait")
        self.blockd.ctl("snapshot", "create", "vm", "--name", "settle")
        self.blockd.ctl("snapshot", "delete", "vm@settle")
        deadline = time.monotonic() + MERGE_TIMEOUT_S
        while self.layers() > 2:
            if time.monotonic() > deadline:
                raise shared.Failed(f"the volume still has {self.layers()} layers: they are not merged")
            time.sleep(0.1)
        while self.has_removed_files():
            if time.monotonic() > deadline:
                raise shared.Failed("the daemon still frees the space of removed files")
            time.sleep(0.1)
        os.sync()
        if self.given.cold:
            drop_caches()

    def write(self, seed):
        """Runs one pass of fio; returns its percentiles in microseconds."""
        given = self.given
        command = ["fio", "--name=guest", "--ioengine=nbd", f"--uri={self.blockd.uri('vm')}", "--rw=randwrite", "--bs=4k"]
        command += [f"--iodepth={given.depth}", f"--size={given.data}", "--time_based", f"--runtime={given.seconds}"]
        command += ["--output-format=json", f"--randseed={seed}", "--percentile_list=50:99:99.9"]
        if given.iops:
            command.append(f"--rate_iops={given.iops}")
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        start = done.stdout.find("{")
        if done.returncode or start < 0:
            raise shared.Failed(f"fio: {(done.stderr or done.stdout).strip()[-800:]}")
        wrote = json.loads(done.stdout[start:])["jobs"][0]["write"]
        if not wrote["total_ios"]:
            raise shared.Failed("fio wrote nothing")
        found = {f"p{float(name):g}": wrote["clat_ns"]["percentile"][name] / 1000 for name in PERCENTILES}
        return {**found, "mean": wrote["clat_ns"]["mean"] / 1000, "iops": wrote["iops"], "writes": wrote["total_ios"]}

    def alone(self, seed):
        self.settle()
        return self.write(seed)

    def load(self):
        """Returns the load of a pass."""
        poll_s = POLL_S[self.given.load]
        if self.given.load == "backup":
            body = {"volume": "vm", "credentials": ["nas"], "full": True, "reupload": True}
            return Load(self.blockd, "cloudsnaps/backup", body, poll_s)
        if self.given.load == "scrub":
            return Load(self.blockd, "scrub", {"volume": "vm", "repair": False}, poll_s)
        return Load(self.blockd, "drills", {"cloudSnapshotId": self.drilled}, poll_s, DRILL_PAUSE_S)

    def beside(self, seed):
        self.settle()
        with self.load() as load:
            began = time.monotonic()
            found = self.write(seed)
            took = time.monotonic() - began
        rate = load.done_bytes / MIB / took
        if self.reader:
            self.reader.mib_per_s = rate
        return {**found, "count": load.count, "load_mib_per_s": rate}

    def limit(self, seed):
        if not self.reader:
            return self.alone(seed)
        self.settle()
        with self.reader:
            return self.write(seed)

    def round(self, nth):
        # The same offsets in both passes, other ones in each round.
        kinds = [("alone", self.alone), ("beside", self.beside), ("limit", self.limit)]
        found = {name: act(nth + 1) for name, act in (kinds if nth % 2 == 0 else reversed(kinds))}
        alone, beside, limit = found["alone"], found["beside"], found["limit"]
        found["ratio"] = beside["p99"] / alone["p99"]
        found["limit_ratio"] = limit["p99"] / alone["p99"]
        say(f"round {nth + 1}: p99 alone {alone['p99']:.0f} us, beside {beside['p99']:.0f} us, {found['ratio']:.2f} x; "
            f"limit {limit['p99']:.0f} us; load {self.given.load}: {beside['count']}")
        return found


def summary(given, rounds):
    names = ("p50", "p99", "p99.9", "mean", "iops")
    found = {kind: {name: statistics.median(one[kind][name] for one in rounds) for name in names} for kind in KINDS}
    for name in ("ratio", "limit_ratio"):
        ratios = [one[name] for one in rounds]
        found[name] = {"median": statistics.median(ratios), "best": min(ratios), "worst": max(ratios)}
    found["load_mib_per_s"] = statistics.median(one["beside"]["load_mib_per_s"] for one in rounds)
    found["count"] = sum(one["beside"]["count"] for one in rounds)
    found["met"] = found["ratio"]["median"] <= GOALS[given.load]
    return found


def report(given, found):
    rate = f"{given.iops} a second" if given.iops else "at the maximum rate"
    print(f"4k randwrite over NBD, depth {given.depth}, {rate}; {given.rounds} rounds of {given.seconds} s; us")
    print(f"{'':8}{'p50':>10}{'p99':>10}{'p99.9':>10}{'mean':>10}{'writes/s':>10}")
    for kind in KINDS:
        one = found[kind]
        print(f"{kind:8}{one['p50']:10.1f}{one['p99']:10.1f}{one['p99.9']:10.1f}{one['mean']:10.1f}{one['iops']:10.0f}")
    ratio = found["ratio"]
    rate = f", {found['load_mib_per_s']:.0f} MiB/s" if found["load_mib_per_s"] else ""
    print(f"load {given.load}: {found['count']}{rate}")
    print(f"p99 beside / alone: {ratio['median']:.2f} x (best {ratio['best']:.2f}, worst {ratio['worst']:.2f}; "
          f"goal <= {GOALS[given.load]:g}: {'met' if found['met'] else 'NOT MET'})")
    limit, what = found["limit_ratio"], "beside a plain reader of the same rate" if given.load == "scrub" else "of a second pass alone"
    print(f"p99 {what} / alone: {limit['median']:.2f} x (best {limit['best']:.2f}, worst {limit['worst']:.2f})")


def interrupted(_signal, _frame):
    raise KeyboardInterrupt


def main():
    given = arguments()
    for tool in ("fio", "nbdcopy"):
        if not shutil.which(tool):
            sys.exit(f"bench: {tool} is missing: apt-get install fio libnbd-bin")
    blockd = Path(given.blockd).resolve() if given.blockd else shared.build_blockd()
    for binary in (blockd, blockd.with_name("blockctl")):
        if not binary.is_file():
            sys.exit(f"bench: there is no {binary}")
    signal.signal(signal.SIGTERM, interrupted)
    rounds = []
    with shared.directory(given.dir) as work, shared.directory(given.store or work) as store:
        bench = None
        try:
            say("filling the volume")
            bench = Bench(given, blockd, work, store)
            for nth in range(given.rounds):
                rounds.append(bench.round(nth))
        except shared.Failed as error:
            sys.exit(f"bench: {error}")
        except KeyboardInterrupt:
            sys.exit("bench: interrupted")
        finally:
            if bench:
                bench.stop()
    found = summary(given, rounds)
    report(given, found)
    shared.write_figures(given, "guest", {"arguments": vars(given), "summary": found, "rounds": rounds})


main()
