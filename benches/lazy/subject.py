"""blockd with a store behind a proxy."""

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import bench
import looks
from bench import MIB

# Passes of plain restores and of unhydrated reads, which alternate.
PASSES = 5


def busy_s():
    """CPU seconds of all processes of the machine: those of daemon, client, proxy and store, if nothing else runs."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Subject:
    def __init__(self, target, dir, store, port):
        self.target, self.dir, self.store, self.port = target, dir, store, port
        self.children, self.home = [], "data"
        self.start_daemon()

    def start_daemon(self):
        log = open(self.dir / f"{self.home}.log", "ab")
        command = [str(self.target / "blockd"), "--data-dir", str(self.dir / self.home)]
        self.children.append(subprocess.Popen(command, stdout=log, stderr=log))
        self.wait("blockd", lambda: self.ctl("status") is not None)
        return self.children[-1]

    def wait(self, what, probe):
        seen = "no reply"
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
        sys.exit(f"bench: timeout of {what}: {seen}")

    def stop(self, child):
        """Ends a child process, so that it does not disturb the next measurement."""
        child.terminate()
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self.children.remove(child)

    def end(self):
        for child in list(self.children):
            self.stop(child)

    def ctl(self, *args):
        command = [self.target / "blockctl", "--socket", self.dir / self.home / "blockd.sock", "--json", *args]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def delete(self, *volumes):
        for name in volumes:
            self.wait(f"the deletion of {name}", lambda name=name: self.ctl("volume", "delete", name) is not None)

    def nbd(self, export):
        return bench.Nbd(self.dir / self.home / "nbd.sock", export)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.dir / self.home / 'nbd.sock'}"

    def peak_mib(self, daemon):
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def fill(self, image, size_gib):
        """Backs up a volume that begins with the image, through the proxy; returns the cloud snapshot."""
        address = f"127.0.0.1:{self.port}"
        access, secret = self.store.keys
        create = ["credentials", "create", "s3", "--provider", "s3", "--s3-endpoint", address, "--s3-region", "us-east-1",
                  "--bucket", self.store.bucket, "--s3-access-key", access, "--s3-secret-key", secret, "--s3-disable-ssl",
                  "--encryption-passphrase", "bench"]
        # The server replies before its bucket exists.
        self.wait("the bucket", lambda: self.ctl(*create) is not None)
        self.ctl("volume", "create", "origin", "--size", f"{size_gib}GiB")
        subprocess.run(["nbdcopy", "--destination-is-zero", str(image), self.uri("origin")], check=True)
        return self.ctl("cloudsnap", "backup", "origin", "--wait")["items"][0]["cloudSnapshotId"]

    def tebibyte(self):
        """Measures first bytes of a full TiB, in ms, and the peak memory of the daemon, in MiB."""
        store = self.dir / "tebibyte"
        store.mkdir()
        made = subprocess.run([self.target / "examples/tebibyte", store], check=True, stdout=subprocess.PIPE, text=True)
        snap, *places = made.stdout.split()
        self.home = "data-tebibyte"
        daemon = self.start_daemon()
        self.ctl("credentials", "create", "here", "--provider", "local", "--path", store)
        found = {"there": [], "clone": [], "export": []}
        for place in places:
            began = time.monotonic()
            self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", f"t{place}")
            found["there"].append((time.monotonic() - began) * 1000)
            for kind, export in (("clone", f"t{place}"), ("export", f"cloud:{snap}")):
                began = time.monotonic()
                with self.nbd(export) as reader:
                    read = bytes(reader.read(int(place), 4096))
                if read != struct.pack("<Q", int(place) // 4096 + 1) * 512:
                    sys.exit(f"bench: wrong content at {place} of {export}")
                found[kind].append((time.monotonic() - began) * 1000)
        found["memoryMiB"] = self.peak_mib(daemon)
        self.stop(daemon)
        for left in (self.home, "tebibyte"):
            shutil.rmtree(self.dir / left, ignore_errors=True)
        self.home = "data"
        return found

    def first_bytes(self, snap, proxy, offsets):
        """Measures new clones: time until available, time of the first read at an offset, and its requests."""
        there, first, requests = [], [], []
        for nth, offset in enumerate(offsets):
            began = time.monotonic()
            self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", f"c{nth}")
            there.append(time.monotonic() - began)
            before = proxy.requests
            began = time.monotonic()
            with self.nbd(f"c{nth}") as reader:
                reader.read(offset, 4096)
            first.append(time.monotonic() - began)
            requests.append(proxy.requests - before)
        self.delete(*(f"c{nth}" for nth in range(len(offsets))))
        return {
            "thereS": max(there),
            "firstByteMs": statistics.median(first) * 1000,
            "firstByteSlowestMs": max(first) * 1000,
            "firstByteRequests": max(requests),
        }

    def rates(self, snap, length, rounds):
        """Measures, in MiB/s: a plain restore, a sequential read of a new clone, hydration, and a hydrated read."""
        mib, found = length / MIB, {}
        restored, unhydrated, limits = [], [], []
        for _ in range(PASSES):
            # Dirty pages of the previous pass must not be written back during this one.
            os.sync()
            began, busy = time.monotonic(), busy_s()
            self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "restored", "--wait")
            restored.append(mib / (time.monotonic() - began))
            restore_s = busy_s() - busy
            self.delete("restored")
            os.sync()
            self.ctl("cloudsnap", "clone", "--snap", snap, "--volume", "fresh")
            began, busy = time.monotonic(), busy_s()
            with self.nbd("fresh") as reader:
                reader.read_in_order(length)
            unhydrated.append(mib / (time.monotonic() - began))
            limits.append(restore_s / (busy_s() - busy))
            self.delete("fresh")
        found["unhydratedCpuLimit"] = statistics.median(limits)
        found["plainRestoreMiBs"], found["unhydratedMiBs"] = statistics.median(restored), statistics.median(unhydrated)
        found["plainRestores"], found["unhydratedReads"] = restored, unhydrated
        self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "plain", "--wait")
        began = time.monotonic()
        self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "hydrated", "--lazy", "--wait")
        found["hydrationMiBs"] = mib / (time.monotonic() - began)
        # Writeback of the volume that was written last would slow down its reads only.
        os.sync()
        rates = {"hydrated": [], "plain": []}
        for _ in range(rounds):
            for name, times in rates.items():
                with self.nbd(name) as reader:
                    began = time.monotonic()
                    reader.read_in_order(length)
                times.append(mib / (time.monotonic() - began))
        found["hydratedMiBs"] = statistics.median(rates["hydrated"])
        found["plainMiBs"] = statistics.median(rates["plain"])
        self.delete("plain", "hydrated")
        return found

    def mounted(self, snap, path):
        """Seconds from the command until a file of a lazy volume's ext4 was read, through nbdfuse and a loop device."""
        if os.geteuid() or not shutil.which("nbdfuse"):
            return None
        device, mountpoint = self.dir / "device", self.dir / "ext4"
        device.mkdir()
        mountpoint.mkdir()
        began = time.monotonic()
        self.ctl("cloudsnap", "restore", "--snap", snap, "--volume", "mounted", "--lazy")
        nbdfuse = subprocess.Popen(["nbdfuse", str(device), self.uri("mounted")])
        while not (device / "nbd").exists():
            time.sleep(0.002)
        try:
            subprocess.run(["mount", "-o", "loop", str(device / "nbd"), str(mountpoint)], check=True)
            length = len((mountpoint / path).read_bytes())
            seconds = time.monotonic() - began
            subprocess.run(["umount", str(mountpoint)], check=True)
        finally:
            subprocess.run(["fusermount3", "-u", str(device)], check=True)
            nbdfuse.wait()
        device.rmdir()
        mountpoint.rmdir()
        self.delete("mounted")
        return {"seconds": seconds, "fileBytes": length}

    def browsed(self, offsets, length, most_s):
        """Measures disk.img of the newest snapshot through FUSE, for each offset with a new daemon and an empty cache."""

        def mount(at):
            self.stop(self.children[-1])
            shutil.rmtree(self.dir / self.home / "cache", ignore_errors=True)
            self.start_daemon()
            # Only cloud snapshots are shown below the name of the volume.
            self.ctl("browse", "mount", "--cred-id", "s3", at)
            return lambda: self.ctl("browse", "umount", at)

        pattern = "origin/*-*/disk.img"
        return looks.look("blockd disk.img", self.dir / "browse", mount, pattern, offsets, length, most_s)
