"""tools/bench lazy: volumes that are restored lazily, from a store that takes its time."""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20

EPILOG = """\
A volume is filled with files of this machine (or random data), backed up to SeaweedFS, and restored through a proxy that holds each
request back for DELAY ms. All sizes are of that volume's data.

  there       from the command until the volume can be opened
  first byte  of a fresh clone: from opening the export until 4 KiB at a random place came; median and slowest
  unhydrated  reading all data of a fresh clone in order, 8 requests of 1 MiB at a time, beside a plain restore's rate
  hydrated    reading data of a lazy volume that is all there, beside a plain volume; interleaved, medians
  full TiB    a snapshot in a directory whose index is that of a full TiB, made for this: first bytes of fresh clones and of the export
              cloud:ID, by a daemon of its own, and the most memory that this one had

Goals: first byte within 4 requests + 20 ms; unhydrated >= 0.8 x a plain restore; hydrated >= 0.97 x a plain volume;
full TiB: first byte within 20 ms beside its requests, which take next to no time here, and no more than 256 MiB.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="tools/bench lazy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures restores that are usable at once.",
        epilog=EPILOG,
    )
    parser.add_argument("--data-mib", type=int, default=1024, help="how much data the volume has [1024]")
    parser.add_argument("--size-gib", type=int, default=16384, help="size of the volume [16384]")
    parser.add_argument("--delays-ms", default="0,20,100", help="added to each request [0,20,100]")
    parser.add_argument("--places", type=int, default=7, help="first bytes measured [7]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of reading what is hydrated [5]")
    parser.add_argument("--without-tebibyte", action="store_true", help="leave the row of the full TiB out")
    parser.add_argument("--weed", help="SeaweedFS [target/venv/bin/weed, or in PATH]")
    parser.add_argument("--dir", help="where to work; a new directory below it is made and removed [$TMPDIR or /var/tmp]")
    parser.add_argument("--json", help="where the figures go [lazy-bench.json below the build directory]")
    return parser.parse_args()


def free_port():
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 50_000:
                with socket.socket() as second:
                    try:
                        second.bind(("127.0.0.1", port + 10_000))
                        return port
                    except OSError:
                        continue


class Proxy:
    """Forwards connections; each request waits for `delay` seconds before it is passed on."""

    def __init__(self, target):
        self.target, self.delay, self.requests = target, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(self.target)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, False), daemon=True).start()

    def pump(self, source, sink, is_request):
        methods = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE")
        try:
            while data := source.recv(256 << 10):
                if is_request and data.startswith(methods):
                    self.requests += 1
                    time.sleep(self.delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Nbd:
    """Just enough of a client to read."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        assert self.take(18)[:16] == b"NBDMAGICIHAVEOPT"
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + b"\0\0"
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind >= 1 << 31:
                sys.exit(f"bench: export {export} is refused")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A volume with a client cannot be deleted.
        self.socket.close()

    def take(self, length):
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self.socket.recv_into(view)
            if count == 0:
                sys.exit("bench: the connection broke")
            view = view[count:]
        return bytes(data)

    def ask(self, offset, length):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, length))

    def answer(self, length):
        _, errno, cookie = struct.unpack(">IIQ", self.take(16))
        if errno:
            sys.exit(f"bench: a read at {cookie} failed with {errno}")
        self.take(length)

    def read(self, offset, length):
        self.ask(offset, length)
        self.answer(length)

    def read_in_order(self, length, depth=8):
        asked = done = 0
        while done < length:
            while asked < length and asked - done < depth * MIB:
                self.ask(asked, MIB)
                asked += MIB
            self.answer(MIB)
            done += MIB


class Bench:
    def __init__(self, given, target, dir):
        self.given, self.dir = given, dir
        root = Path(__file__).resolve().parents[2]
        builds = [["-p", "blockd", "-p", "blockctl"]]
        if not given.without_tebibyte:
            builds.append(["-p", "blockd-cloud", "--example", "tebibyte"])
        for what in builds:
            build = ["cargo", "build", "--release", "--locked", *what]
            subprocess.run(build, cwd=root, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(target.parent)})
        self.blockd, self.blockctl = target / "blockd", target / "blockctl"
        own = root / "target/venv/bin/weed"
        weed = given.weed or (own if own.is_file() else shutil.which("weed"))
        if not weed:
            sys.exit("bench: SeaweedFS is missing: tools/test installs it, or name it with --weed")
        identity = {"name": "a", "credentials": [{"accessKey": "bench", "secretKey": "benchbench"}], "actions": ["Admin"]}
        (dir / "s3.json").write_text(json.dumps({"identities": [identity]}))
        port = free_port()
        self.children = []
        self.start(
            [weed, "mini", f"-dir={dir / 'weed'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
            + [f"-s3.port={port}", f"-s3.config={dir / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
            + ["-admin.ui=false", "-webdav=false", "-bucket=bkt"],
            "weed",
        )
        self.wait("SeaweedFS", lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        time.sleep(3)
        self.proxy = Proxy(("127.0.0.1", port))
        self.home = "data"
        self.start([self.blockd, "--data-dir", dir / "data"], "blockd")
        self.wait("blockd", lambda: self.ctl("status") is not None)

    def start(self, command, name):
        (self.dir / "weed").mkdir(exist_ok=True)
        log = open(self.dir / f"{name}.log", "ab")
        self.children.append(subprocess.Popen([str(part) for part in command], stdout=log, stderr=log))
        return self.children[-1]

    def wait(self, what, probe):
        seen = "it did not answer"
        for _ in range(600):
            try:
                if probe():
                    return
            except OSError as error:
                seen = str(error)
            except subprocess.CalledProcessError as error:
                seen = (error.stderr or error.stdout).strip()
            time.sleep(0.1)
        for log in self.dir.glob("*.log"):
            print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-5:], sep="\n", file=sys.stderr)
        sys.exit(f"bench: waited for {what} in vain: {seen}")

    def stop(self, child):
        """Ends one of those that were started, and waits for it: it must not take time from what is measured next."""
        child.terminate()
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self.children.remove(child)

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()

    def ctl(self, *args):
        command = [self.blockctl, "--socket", self.dir / self.home / "blockd.sock", "--json", *map(str, args)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def nbd(self, export):
        return Nbd(self.dir / self.home / "nbd.sock", export)

    def fill(self):
        """Files of this machine, and random data where there are not enough."""
        image = self.dir / "image"
        left = self.given.data_mib * MIB
        with open(image, "wb") as out:
            for folder in ("/usr/lib", "/usr/share", "/usr/bin"):
                for path in sorted(Path(folder).rglob("*")):
                    if left <= 0 or not path.is_file() or path.is_symlink():
                        continue
                    data = path.read_bytes()[:left]
                    left -= len(data)
                    out.write(data)
            while left > 0:
                data = random.randbytes(min(left, MIB))
                left -= len(data)
                out.write(data)
        self.ctl("credentials", "create", "s3", "--provider", "s3", "--s3-endpoint", f"127.0.0.1:{self.proxy.port}",
                 "--s3-region", "us-east-1", "--bucket", "bkt", "--s3-access-key", "bench", "--s3-secret-key", "benchbench",
                 "--s3-disable-ssl", "--encryption-passphrase", "bench")
        self.ctl("volume", "create", "origin", "--size", f"{self.given.size_gib}GiB")
        uri = f"nbd+unix:///origin?socket={self.dir / 'data/nbd.sock'}"
        subprocess.run(["nbdcopy", str(image), uri], check=True)
        image.unlink()
        return self.ctl("cloudsnap", "backup", "origin", "--wait")["sourceVolume"]

    def tebibyte(self, target):
        """First bytes of a full TiB, in ms, and the most memory of the daemon that reads them, in MiB."""
        made = subprocess.run([target / "examples/tebibyte", self.dir / "tebibyte"], check=True, capture_output=True, text=True)
        snap, *places = made.stdout.split()
        self.home = "data-tebibyte"
        daemon = self.start([self.blockd, "--data-dir", self.dir / self.home], "blockd-tebibyte")
        self.wait("blockd", lambda: self.ctl("status") is not None)
        self.ctl("credentials", "create", "here", "--provider", "local", "--path", self.dir / "tebibyte")
        found = {"there": [], "clone": [], "export": []}
        for place in places:
            began = time.monotonic()
            self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", f"t{place}")
            found["there"].append((time.monotonic() - began) * 1000)
            for kind, export in (("clone", f"t{place}"), ("export", f"cloud:{snap}")):
                began = time.monotonic()
                with self.nbd(export) as client:
                    client.ask(int(place), 4096)
                    _, errno, _ = struct.unpack(">IIQ", client.take(16))
                    if errno or client.take(4096) != struct.pack("<Q", int(place) // 4096 + 1) * 512:
                        sys.exit(f"bench: a wrong byte at {place} of {export}")
                found[kind].append((time.monotonic() - began) * 1000)
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        found["memoryMiB"] = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
        self.stop(daemon)
        for left in (self.home, "tebibyte"):
            shutil.rmtree(self.dir / left, ignore_errors=True)
        self.home = "data"
        return found

    def measure(self, snap, delay_ms):
        length = self.given.data_mib * MIB
        self.proxy.delay = delay_ms / 1000
        began = time.monotonic()
        self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "plain", "--wait")
        found = {"delayMs": delay_ms, "plainRestoreMiBs": self.given.data_mib / (time.monotonic() - began)}
        there, first, requests = [], [], []
        for nth in range(self.given.places):
            began = time.monotonic()
            self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", f"c{nth}")
            there.append(time.monotonic() - began)
            before = self.proxy.requests
            began = time.monotonic()
            with self.nbd(f"c{nth}") as client:
                client.read(random.randrange(length // 4096) * 4096, 4096)
            first.append(time.monotonic() - began)
            requests.append(self.proxy.requests - before)
        found["thereS"], found["firstByteMs"] = max(there), statistics.median(first) * 1000
        found["firstByteSlowestMs"], found["firstByteRequests"] = max(first) * 1000, max(requests)
        self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", "fresh")
        began = time.monotonic()
        with self.nbd("fresh") as client:
            client.read_in_order(length)
        found["unhydratedMiBs"] = self.given.data_mib / (time.monotonic() - began)
        began = time.monotonic()
        self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "hydrated", "--lazy", "--wait")
        found["hydrationMiBs"] = self.given.data_mib / (time.monotonic() - began)
        rates = {"hydrated": [], "plain": []}
        for _ in range(self.given.rounds):
            for name, times in rates.items():
                with self.nbd(name) as client:
                    began = time.monotonic()
                    client.read_in_order(length)
                times.append(self.given.data_mib / (time.monotonic() - began))
        found["hydratedMiBs"] = statistics.median(rates["hydrated"])
        found["plainMiBs"] = statistics.median(rates["plain"])
        for name in ["plain", "fresh", "hydrated"] + [f"c{nth}" for nth in range(self.given.places)]:
            self.wait(f"the deletion of {name}", lambda name=name: self.ctl("volume", "delete", name) is not None)
        return found


def report_tebibyte(found):
    slowest = max(found["clone"] + found["export"])
    print(
        f"full TiB: there in {max(found['there']):.0f} ms; first byte {statistics.median(found['clone']):.1f} ms of a clone,"
        f" {statistics.median(found['export']):.1f} ms of cloud:ID, slowest {slowest:.1f} ms; {found['memoryMiB']:.0f} MiB at most"
    )
    goals = {"first byte": slowest <= 20, "memory": found["memoryMiB"] <= 256}
    print("        " + ", ".join(f"{name}: {'met' if met else 'NOT MET'}" for name, met in goals.items()))


def report(found):
    print("delay   there  first byte  slowest  requests  restore  unhydrated          hydrated   plain  ratio")
    for one in found:
        unhydrated = one["unhydratedMiBs"] / one["plainRestoreMiBs"]
        hydrated = one["hydratedMiBs"] / one["plainMiBs"]
        print(
            f"{one['delayMs']:3} ms  {one['thereS']:4.2f} s  {one['firstByteMs']:7.1f} ms  {one['firstByteSlowestMs']:4.0f} ms"
            f"  {one['firstByteRequests']:8}  {one['plainRestoreMiBs']:7.0f}  {one['unhydratedMiBs']:7.0f} ({unhydrated:4.2f} x)"
            f"  {one['hydratedMiBs']:9.0f}  {one['plainMiBs']:6.0f}  {hydrated:5.2f}"
        )
        goals = {
            "first byte": one["firstByteSlowestMs"] <= 4 * one["delayMs"] + 20,
            "unhydrated": unhydrated >= 0.8,
            "hydrated": hydrated >= 0.97,
        }
        print("        " + ", ".join(f"{name}: {'met' if met else 'NOT MET'}" for name, met in goals.items()))


def main():
    given = arguments()
    target = Path(os.environ["BLOCKD_BENCH_TARGET"])
    dir = Path(tempfile.mkdtemp(prefix="blockd-lazy-", dir=given.dir or os.environ.get("TMPDIR", "/var/tmp")))
    bench = None
    try:
        bench = Bench(given, target, dir)
        tebibyte = None if given.without_tebibyte else bench.tebibyte(target)
        snap = bench.fill()
        found = [bench.measure(snap, int(delay)) for delay in given.delays_ms.split(",") if delay]
    finally:
        if bench:
            bench.end()
        shutil.rmtree(dir, ignore_errors=True)
    report(found)
    if tebibyte:
        report_tebibyte(tebibyte)
    document = {"delays": found, "tebibyte": tebibyte}
    Path(given.json or target / "lazy-bench.json").write_text(json.dumps(document, indent=1))


main()
