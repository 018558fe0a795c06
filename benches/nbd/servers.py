"""The compared servers, each with one export in a given state at a time."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import workloads
from bench import Failed, Process

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
SNAPSHOT_COUNT = 8
KEPT_SNAPSHOTS = 5


def cpu_us(pid):
    """Returns user and system time of a process with all its threads, including those of io_uring."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 // CLOCK_TICKS


class Server:
    """Interface of a server; `label` is its name in the output."""

    # FLUSH runs fdatasync.
    flush_is_durable = True
    # Acknowledged writes survive a kill of the process.
    survives_kill = True
    is_file_backed = True
    states = (workloads.FRESH, workloads.ALLOCATED)

    def __init__(self, label, directory, size_bytes):
        self.label = label
        self.directory = Path(directory)
        self.size_bytes = size_bytes
        self.process = None

    def prepare(self, state):
        """Creates an export in this state and returns its URI; an allocated disk may be reused."""
        raise NotImplementedError

    @contextlib.contextmanager
    def during_pass(self, state):
        """Runs what the state needs beside the pass; yields a dictionary that has further figures at its end."""
        yield {}

    def release(self, state):
        """Ends the pass."""

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    def cpu_us(self):
        return cpu_us(self.process.pid)


class FileServer(Server):
    """A peer that serves one file, with a new process for each pass."""

    def command(self, socket, image):
        raise NotImplementedError

    def create(self, image):
        with open(image, "wb") as file:
            file.truncate(self.size_bytes)

    def start(self, image):
        socket = self.directory / f"{self.label}.sock"
        socket.unlink(missing_ok=True)
        command = self.command(socket, image)
        self.process = Process(command, self.directory / f"{self.label}.log")
        self.process.wait_until(socket.is_socket)
        return f"nbd+unix:///?socket={socket}"

    def prepare(self, state):
        image = self.directory / f"{self.label}.{state}"
        is_new = state == workloads.FRESH or not image.exists()
        if is_new:
            image.unlink(missing_ok=True)
            self.create(image)
        uri = self.start(image)
        if is_new and state == workloads.ALLOCATED:
            workloads.fill(uri, self.size_bytes)
        return uri

    def release(self, state):
        self.stop()
        if state == workloads.FRESH:
            (self.directory / f"{self.label}.{state}").unlink(missing_ok=True)


class PlainFile(FileServer):
    """No server: fio opens the file through the page cache. What the kernel does alone."""

    is_file_backed = False

    def start(self, image):
        return str(image)

    def cpu_us(self):
        return 0


class NbdkitFile(FileServer):
    def command(self, socket, image):
        return ["nbdkit", "-f", "-U", socket, "file", image]


class NbdkitNull(FileServer):
    """Without disk and memory: the cost of the protocol."""

    flush_is_durable = False
    survives_kill = False
    is_file_backed = False
    states = (workloads.FRESH,)

    def create(self, image):
        pass

    def command(self, socket, image):
        return ["nbdkit", "-f", "-U", socket, "null", f"size={self.size_bytes}"]


class QemuNbd(FileServer):
    """`--persistent`: continues after a client disconnects; `--shared`: several clients."""

    image_format = "raw"
    cache = ("--cache=writeback",)

    def command(self, socket, image):
        shared = ["--persistent", "--shared=8", "--discard=unmap"]
        return ["qemu-nbd", *shared, "-k", socket, "-f", self.image_format, *self.cache, image]


class QemuDirect(QemuNbd):
    cache = ("--cache=none", "--aio=io_uring")


class QemuQcow2(QemuNbd):
    image_format = "qcow2"
    # Until a flush, only the process knows the offsets of new blocks.
    survives_kill = False

    def create(self, image):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(self.size_bytes)]
        subprocess.run(command, check=True)


class Blockd(Server):
    """One daemon for all passes, with a new volume for each pass that needs one."""

    states = tuple(workloads.STATES)

    def __init__(self, label, directory, size_bytes, blockd, blockctl):
        super().__init__(label, directory, size_bytes)
        self.blockctl_path = blockctl
        self.data = self.directory / label
        self.data.mkdir()
        self.made = 0
        self.volumes = {}
        command = [blockd, "--data-dir", self.data, "--log-level", "warn"]
        self.process = Process(command, self.directory / f"{label}.log")
        self.process.wait_until((self.data / "blockd.sock").is_socket)

    def blockctl(self, *arguments):
        command = [str(self.blockctl_path), "--socket", str(self.data / "blockd.sock"), *arguments]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            raise Failed(f"{' '.join(command)}: {run.stderr.strip()}")
        return run.stdout.strip()

    def prepare(self, state):
        if state in self.volumes:
            return self.blockctl("volume", "uri", self.volumes[state])
        self.made += 1
        name = f"{state}-{self.made}"
        self.blockctl("volume", "create", name, "--size", str(self.size_bytes))
        self.volumes[state] = name
        uri = self.blockctl("volume", "uri", name)
        if state != workloads.FRESH:
            workloads.fill(uri, self.size_bytes)
        if state == workloads.SNAPSHOTS:
            for number in range(SNAPSHOT_COUNT):
                workloads.scatter(uri, self.size_bytes, seed=number + 1)
                self.blockctl("snapshot", "create", name)
        return uri

    @contextlib.contextmanager
    def during_pass(self, state):
        more = {}
        if state != workloads.SCHEDULED:
            yield more
            return
        ended, failures = threading.Event(), []
        thread = threading.Thread(target=self.take_snapshots, args=(self.volumes[state], ended, failures))
        thread.start()
        try:
            yield more
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]
        volume = json.loads(self.blockctl("--json", "volume", "inspect", self.volumes[state]))
        more.update(layers=volume["layers"], allocated_bytes=volume["allocatedBytes"])

    def take_snapshots(self, volume, ended, failures):
        """Takes a snapshot each second, and deletes all but the last ones."""
        number = 0
        try:
            while not ended.wait(1):
                number += 1
                self.blockctl("snapshot", "create", volume, "--name", f"s{number}")
                if number > KEPT_SNAPSHOTS:
                    self.blockctl("snapshot", "delete", f"{volume}@s{number - KEPT_SNAPSHOTS}", "--yes")
        except Failed as error:
            failures.append(error)

    def release(self, state):
        if state == workloads.ALLOCATED:
            return
        name = self.volumes.pop(state, None)
        if name:
            self.delete(name)

    def delete(self, name):
        # The server may not have closed the last connection yet.
        for attempt in range(50):
            try:
                self.blockctl("volume", "delete", name)
                return
            except Failed:
                if attempt == 49:
                    raise
                time.sleep(0.1)


PEERS = {
    "file": (PlainFile, "no server: fio writes to a file through the page cache"),
    "nbdkit-null": (NbdkitNull, "nbdkit's null plugin: only the protocol"),
    "nbdkit-file": (NbdkitFile, "nbdkit's file plugin, through the page cache"),
    "qemu-raw": (QemuNbd, "qemu-nbd, raw file, --cache=writeback"),
    "qemu-direct": (QemuDirect, "qemu-nbd, raw file, --cache=none --aio=io_uring"),
    "qemu-qcow2": (QemuQcow2, "qemu-nbd, qcow2 file, --cache=writeback"),
}

TOOLS = {
    "fio": "fio",
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}


def missing_packages():
    return sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
