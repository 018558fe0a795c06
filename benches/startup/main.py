"""tools/bench startup: start time and memory with many large volumes with fragmented heads."""

import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench

GIB = 1 << 30

EPILOG = """\
The daemon creates the volumes; their heads get --blocks non-adjacent blocks of 4 KiB each, spread over the first --spread-gib
of the volume. All share the data of the first one to save disk space.

CLEAN is a start after SIGTERM, KILLED one after SIGKILL in the same boot. RSS is the resident memory of the ready
daemon, ANON its anonymous part. A volume is opened by its first use; CHECKED is the time until the daemon has opened
and closed each of them once, from exec, and PEAK the highest resident memory until then.

With --layers, as many snapshots are taken first, each after another fill.

Goal: a start takes at most 1 second.
"""
GOAL_S = 1


def arguments():
    parser = bench.arguments("startup", "Measures the start time of the daemon, from exec to ready.", EPILOG)
    parser.add_argument("--volumes", type=int, default=1000, help="number of volumes [1000]")
    parser.add_argument("--size-gib", type=int, default=1024, help="size of each volume [1024]")
    parser.add_argument("--blocks", type=int, default=4000, help="scattered blocks in each head [4000]")
    parser.add_argument("--spread-gib", type=int, default=64, help="part of the volume with these blocks [64]")
    parser.add_argument("--layers", type=int, default=0, help="frozen layers below each head, filled equally [0]")
    parser.add_argument("--starts", type=int, default=3, help="starts of each kind [3]")
    parser.add_argument("--no-check", action="store_true", help="end each daemon once it is ready")
    parser.add_argument("--blockd", help="daemon binary [built]")
    parser.add_argument("--filler", help="binary that fills heads [built]")
    return parser.parse_args()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("blockd", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Daemon:
    """Ready daemon; `seconds` is its start time."""

    def __init__(self, binary, data_dir):
        self.data_dir = data_dir
        notify_path = data_dir.parent / "notify"
        notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(notify_path))
            notify.settimeout(1)
            log = open(data_dir.parent / "log", "ab")
            self.log, self.log_start = Path(log.name), log.tell()
            self.began = began = time.monotonic()
            self.process = subprocess.Popen(
                [binary, "--data-dir", data_dir],
                env={**os.environ, "NOTIFY_SOCKET": str(notify_path)},
                stdout=log,
                stderr=log,
            )
            while True:
                try:
                    if b"READY=1" in notify.recv(4096):
                        break
                except TimeoutError:
                    if self.process.poll() is not None:
                        sys.exit(f"bench: blockd ended with {self.process.returncode}: see {log.name}")
            self.seconds = time.monotonic() - began

    def checked_seconds(self):
        """Waits for the check of the closed volumes; returns its time since exec."""
        while b"closed volumes checked" not in self.log.read_bytes()[self.log_start :]:
            if self.process.poll() is not None:
                sys.exit(f"bench: blockd ended with {self.process.returncode}: see {self.log}")
            time.sleep(0.1)
        return time.monotonic() - self.began

    def peak_bytes(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", text, re.M)[1]) << 10

    def memory(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        fields = {"Rss": "rssBytes", "Pss_Anon": "anonBytes"}
        return {name: int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1]) << 10 for field, name in fields.items()}

    def post(self, path, body):
        connection = UnixConnection(self.data_dir / "blockd.sock")
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        if reply.status >= 300:
            sys.exit(f"bench: {reply.status}: {text.decode()}")

    def end(self, how):
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait()
        return time.monotonic() - began


def prepare(given, blockd, filler, data_dir):
    names = [f"v{number:04}" for number in range(given.volumes)]

    def for_all(what):
        daemon = Daemon(blockd, data_dir)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: what(daemon, name), names))
        daemon.end(signal.SIGTERM)
        subprocess.run([filler, data_dir, str(given.blocks), str(given.spread_gib * GIB)], check=True)

    size_bytes = given.size_gib * GIB
    for_all(lambda daemon, name: daemon.post("/v1/volumes", {"name": name, "sizeBytes": size_bytes}))
    for layer in range(given.layers):
        for_all(lambda daemon, name: daemon.post(f"/v1/volumes/{name}/snapshots", {"name": f"s{layer}"}))


def measure(given, blockd, data_dir):
    found = {"clean": [], "killed": []}
    for _ in range(given.starts):
        for kind, end in (("clean", signal.SIGKILL), ("killed", signal.SIGTERM)):
            daemon = Daemon(blockd, data_dir)
            one = {"seconds": daemon.seconds, **daemon.memory()}
            if not given.no_check:
                one |= {"checkedSeconds": daemon.checked_seconds(), "peakBytes": daemon.peak_bytes()}
            one["stopSeconds"] = daemon.end(end)
            found[kind].append(one)
    return found


def report(given, found):
    print(f"{given.volumes} volumes of {given.size_gib} GiB, {given.layers} frozen layers, {given.blocks} blocks in each and in the head, scattered over {given.spread_gib} GiB")
    print("start   seconds  slowest    RSS MiB  ANON MiB  CHECKED s  PEAK MiB")
    met = True
    for kind, starts in found.items():
        seconds = [one["seconds"] for one in starts]
        names = ("rssBytes", "anonBytes", "checkedSeconds", "peakBytes")
        rss, anon, checked, peak = (statistics.median(one.get(name, 0) for one in starts) for name in names)
        rss, anon, peak = (value / (1 << 20) for value in (rss, anon, peak))
        print(f"{kind:7} {statistics.median(seconds):7.2f}  {max(seconds):7.2f}  {rss:9.0f}  {anon:8.0f}  {checked:9.1f}  {peak:8.0f}")
        met &= statistics.median(seconds) <= GOAL_S
    print(f"goal, at most {GOAL_S} s: {'met' if met else 'MISSED'}")
    bench.write_figures(given, "startup", {"arguments": vars(given), "starts": found})


def main():
    given = arguments()
    blockd = given.blockd or bench.build_blockd()
    filler = given.filler or bench.build("-p", "blockd-benches", "--bin", "fill_heads").with_name("fill_heads")
    with bench.directory(given.dir) as work:
        data_dir = work / "data"
        data_dir.mkdir()
        prepare(given, blockd, filler, data_dir)
        # The filled blocks must not be written back during the first start.
        os.sync()
        report(given, measure(given, blockd, data_dir))


main()
