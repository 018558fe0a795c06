"""The same measurement with qemu: a transaction that adds a dirty bitmap to several disks."""

import json
import multiprocessing
import random
import socket
import struct
import subprocess
import time

BLOCK = 4096
BLOCKS = 1024
# The maximum file size of ext4 is slightly less than 16 TiB.
LARGEST_FILE = (16 << 40) - (1 << 20)
START_TIMEOUT_S = 30


def receive(sock, length):
    data = b""
    while len(data) < length:
        chunk = sock.recv(length - len(data))
        if not chunk:
            raise EOFError("the server closed the connection")
        data += chunk
    return data


def nbd(path, export):
    """Returns a connection in the transmission phase, by NBD_OPT_EXPORT_NAME."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    receive(sock, 18)
    name = export.encode()
    sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
    receive(sock, 10)
    return sock


def write(path, exports, size, seed, stop, results):
    """Makes random writes, one at a time, until `stop` is set; reports those longer than 20 us."""
    socks = [nbd(path, export) for export in exports]
    dice, long, count = random.Random(seed), [], 0
    data = bytes([seed % 256]) * BLOCK
    stride = size // BLOCK // BLOCKS
    while not stop.is_set():
        sock = dice.choice(socks)
        offset = dice.randrange(BLOCKS) * stride * BLOCK
        began = time.monotonic_ns()
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, count, offset, BLOCK) + data)
        if struct.unpack(">I", receive(sock, 16)[4:8])[0]:
            raise OSError("a write failed")
        ended = time.monotonic_ns()
        if ended - began > 20_000:
            long.append((began, ended))
        count += 1
    results.put((count, long))


class Qmp:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.lines = self.sock.makefile()
        json.loads(self.lines.readline())
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self.lines.readline())
            if "error" in reply:
                raise OSError(reply["error"]["desc"])
            if "return" in reply:
                return reply["return"]


def measure(place, count, size, seconds, writers):
    size = min(size, LARGEST_FILE)
    exports = [f"d{number}" for number in range(count)]
    server, qmp = place / "nbd.sock", place / "qmp.sock"
    command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-storage-daemon"]
    command += ["--chardev", f"socket,path={qmp},server=on,wait=off,id=qmp", "--monitor", "chardev=qmp"]
    command += ["--nbd-server", f"addr.type=unix,addr.path={server},max-connections=0"]
    for export in exports:
        with open(place / export, "wb") as disk:
            disk.truncate(size)
        command += ["--blockdev", f"driver=file,node-name=f-{export},filename={place / export},cache.direct=off"]
        command += ["--blockdev", f"driver=raw,node-name={export},file=f-{export}"]
        command += ["--export", f"type=nbd,id=e-{export},node-name={export},writable=on,name={export}"]
    child = subprocess.Popen(command)
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    workers = []
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (server.is_socket() and qmp.is_socket()):
            if child.poll() is not None or time.monotonic() > deadline:
                raise OSError("qemu-storage-daemon did not start")
            time.sleep(0.01)
        for seed in range(writers):
            worker = multiprocessing.Process(target=write, args=(server, exports, size, seed + 1, stop, results))
            worker.start()
            workers.append(worker)
        monitor = Qmp(qmp)
        calls, controls = [], []
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            time.sleep(0.02)
            controls.append((time.monotonic_ns(),) * 2)
            time.sleep(0.02)
            name = f"b{len(calls)}"
            bitmaps = [{"node": export, "name": name} for export in exports]
            began = time.monotonic_ns()
            actions = [{"type": "block-dirty-bitmap-add", "data": bitmap} for bitmap in bitmaps]
            monitor.call("transaction", actions=actions)
            calls.append((began, time.monotonic_ns()))
            for bitmap in bitmaps:
                monitor.call("block-dirty-bitmap-remove", **bitmap)
        stop.set()
        lasted = time.monotonic() - started
        found = [results.get(timeout=60) for _ in workers]
    finally:
        stop.set()
        for worker in workers:
            worker.join(10)
            worker.kill()
        child.terminate()
        child.wait()
    long = [span for _, spans in found for span in spans]

    def worst(span):
        return max((end - start for start, end in long if start <= span[1] and end >= span[0]), default=0)

    return {
        "volumes": count,
        "sizeBytes": size if size < LARGEST_FILE else 16 << 40,
        "writers": writers,
        "writesPerSecond": sum(count for count, _ in found) / lasted,
        "controlWorstWriteNs": [worst(span) for span in controls],
        "freezes": [{"callNs": end - began, "worstWriteNs": worst((began, end))} for began, end in calls],
    }
