"""Shared code of the benchmarks: arguments, builds, directories, servers, an NBD client. `tools/bench` sets PYTHONPATH."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("BLOCKD_BENCH_TARGET", ROOT / "target/release"))
START_TIMEOUT_S = 60
MIB = 1 << 20


class Failed(Exception):
    """A tool failed."""


def arguments(what, description, epilog):
    """Returns a parser with the common options."""
    parser = argparse.ArgumentParser(
        prog=f"tools/bench {what}", formatter_class=argparse.RawDescriptionHelpFormatter, description=description, epilog=epilog
    )
    parser.add_argument("--dir", help="parent of the temporary directory [$TMPDIR or /var/tmp]")
    parser.add_argument("--json", help=f"output file [{what}-bench.json below the build directory]")
    return parser


def build(*what):
    """Makes a release build of packages; returns the path of the daemon."""
    command = ["cargo", "build", "--release", "--locked", *what]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(TARGET.parent)})
    return TARGET / "blockd"


def build_blockd():
    return build("-p", "blockd", "-p", "blockctl")


@contextlib.contextmanager
def directory(parent=None):
    """A temporary directory."""
    made = Path(tempfile.mkdtemp(prefix="blockd-bench-", dir=parent or os.environ.get("TMPDIR") or "/var/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_figures(given, what, document):
    path = Path(given.json) if given.json else TARGET.parent / f"{what}-bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    print(f"\nfigures: {path}")


class Process:
    """A server that ends with the benchmark."""

    def __init__(self, command, log_path):
        self.log_path = Path(log_path)
        with open(log_path, "ab") as log:
            # setpriv: the kernel ends the server if the benchmark is killed. Own session: Ctrl-C reaches only
            # the benchmark, which ends its servers in order.
            self.child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self):
        return self.child.pid

    def wait_until(self, is_ready):
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if is_ready():
                    return
            except (OSError, subprocess.CalledProcessError):
                pass
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failed(f"a server did not start: {self.log_path.read_text(errors='replace')[-1000:]}")
            time.sleep(0.01)

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


class Blockd:
    """A daemon with its data directory, and `blockctl` in the directory of its binary."""

    def __init__(self, blockd, directory, *options):
        self.command = [blockd, "--data-dir", directory / "blockd", *options]
        self.blockctl, self.dir, self.log = Path(blockd).with_name("blockctl"), directory / "blockd", directory / "blockd.log"
        self.start()

    def start(self):
        self.process = Process(self.command, self.log)
        self.process.wait_until(lambda: self.ctl("status") is not None)

    def stop(self):
        self.process.stop()

    def ctl(self, *parts):
        command = [self.blockctl, "--socket", self.dir / "blockd.sock", "--json", *parts]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            if parts == ("status",):
                raise OSError("not ready")
            raise Failed(f"blockctl {' '.join(map(str, parts[:2]))}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def uri(self, volume):
        return f"nbd+unix:///{volume}?socket={self.dir / 'nbd.sock'}"


class Nbd:
    """NBD client with few copies, as it shares the CPUs with the server under measurement."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.buffer = memoryview(bytearray(MIB))
        if bytes(self.take(18))[:16] != b"NBDMAGICIHAVEOPT":
            raise Failed("unknown greeting of the NBD server")
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + b"\0\0"
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind >= 1 << 31:
                raise Failed(f"export {export} is refused")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A volume with a client cannot be deleted.
        self.socket.close()

    def take(self, length):
        """Returns the next bytes, at most 1 MiB, valid until the next call."""
        result = self.buffer[:length]
        view = result
        while view:
            count = self.socket.recv_into(view)
            if count == 0:
                raise Failed("the NBD connection broke")
            view = view[count:]
        return result

    def request(self, offset, length, kind=0, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, offset, offset, length) + payload)

    def reply(self, length=0):
        _, errno, cookie = struct.unpack(">IIQ", self.take(16))
        if errno:
            raise Failed(f"an NBD request at {cookie} failed with {errno}")
        return self.take(length)

    def read(self, offset, length):
        self.request(offset, length)
        return self.reply(length)

    def write(self, offset, payload):
        self.request(offset, len(payload), 1, payload)
        self.reply()

    def flush(self):
        self.request(0, 0, 3)
        self.reply()

    def read_in_order(self, length, depth=8):
        asked = done = 0
        while done < length:
            while asked < length and asked - done < depth * MIB:
                self.request(asked, MIB)
                asked += MIB
            self.reply(MIB)
            done += MIB
