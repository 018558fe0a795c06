"""blockd: a daemon with the volume, and a credential for each way to store it."""

import json
import socket
import struct
import subprocess
import time

import measure
import places

MIB = 1 << 20


class Nbd:
    """Just enough of a client to write."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        if self.take(18)[:16] != b"NBDMAGICIHAVEOPT":
            raise measure.Failed("the NBD server greets in a way that is not known")
        name = export.encode()
        asked = struct.pack(">I", len(name)) + name + b"\0\0"
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(asked)) + asked)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind >= 1 << 31:
                raise measure.Failed(f"export {export} is refused")

    def take(self, length):
        found = b""
        while len(found) < length:
            part = self.socket.recv(length - len(found))
            if not part:
                raise measure.Failed("the NBD connection broke")
            found += part
        return found

    def ask(self, kind, offset, length, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, length) + payload)
        _, errno, _ = struct.unpack(">IIQ", self.take(16))
        if errno:
            raise measure.Failed(f"an NBD request at {offset} failed with {errno}")

    def write(self, offset, payload):
        self.ask(1, offset, len(payload), payload)

    def flush(self):
        self.ask(3, 0, 0)


class Blockd:
    """The daemon under measurement."""

    def __init__(self, blockd, blockctl, directory):
        self.blockctl, self.dir = blockctl, directory / "blockd"
        self.process = places.Process([blockd, "--data-dir", self.dir], directory / "blockd.log")
        self.process.wait_until(lambda: self.ctl("status") is not None)
        self.meter = measure.Daemon(self.process.pid)

    def ctl(self, *parts):
        command = [self.blockctl, "--socket", self.dir / "blockd.sock", "--json", *parts]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            if parts == ("status",):
                raise OSError("not there yet")
            raise measure.Failed(f"blockctl {' '.join(map(str, parts[:2]))}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def uri(self, volume):
        return f"nbd+unix:///{volume}?socket={self.dir / 'nbd.sock'}"

    def make_volume(self, name, size_bytes, image):
        self.ctl("volume", "create", name, "--size", size_bytes)
        subprocess.run(["nbdcopy", str(image), self.uri(name)], check=True)

    def write(self, volume, changes):
        client = Nbd(self.dir / "nbd.sock", volume)
        for offset, payload in changes:
            client.write(offset, payload)
        client.flush()

    def make_credential(self, name, place, is_encrypted):
        secret = ["--encryption-passphrase", "bench"] if is_encrypted else []
        options = place.credential(name)
        # A server that has just started makes its bucket a little later than it answers.
        deadline = time.monotonic() + places.START_TIMEOUT_S
        while True:
            try:
                return self.ctl("credentials", "create", name, *options, *secret)
            except measure.Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def task(self, *parts):
        task, took = self.meter.measure(lambda: self.ctl(*parts, "--wait"))
        requests = task["requests"]
        return task, {**took, "requests": sum(requests[kind] for kind in ("put", "get", "list", "delete", "head"))}

    def backup(self, volume, credential, *more):
        task, took = self.task("cloudsnap", "backup", volume, "--cred-id", credential, *more)
        return {
            **took,
            "stored_bytes": task["bytesUploaded"],
            "puts": task["requests"]["put"],
            "snap": task["sourceVolume"],
        }

    def restore(self, snap, credential, volume):
        _, took = self.task("cloudsnap", "restore", "--snap", snap, "--cred-id", credential, "--volume", volume)
        return took

    def stop(self):
        self.process.stop()
