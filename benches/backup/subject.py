"""blockd: a daemon with the volume, and a credential for each location and encryption mode."""

import subprocess
import time

import bench
import measure


class Blockd(bench.Blockd):
    """The daemon under measurement."""

    def start(self):
        super().start()
        self.meter = measure.Daemon(self.process.pid)

    def make_volume(self, name, size_bytes, image):
        self.ctl("volume", "create", name, "--size", size_bytes)
        subprocess.run(["nbdcopy", str(image), self.uri(name)], check=True)

    def write(self, volume, changes):
        client = bench.Nbd(self.dir / "nbd.sock", volume)
        for offset, payload in changes:
            client.write(offset, payload)
        client.flush()

    def make_credential(self, name, place, is_encrypted, deduplicate="repository", compression="auto"):
        secret = ["--encryption-passphrase", "bench"] if is_encrypted else []
        options = [*place.credential(name), "--deduplicate", deduplicate, "--compression", compression]
        # The server replies before its bucket exists.
        deadline = time.monotonic() + bench.START_TIMEOUT_S
        while True:
            try:
                return self.ctl("credentials", "create", name, *options, *secret)
            except bench.Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def task(self, *parts):
        task, took = self.meter.measure(lambda: self.ctl(*parts, "--wait"))
        # A backup has a task for each location.
        task = task["items"][0] if "items" in task else task
        requests = task["requests"]
        return task, {**took, "requests": sum(requests[kind] for kind in ("put", "get", "list", "delete", "head"))}

    def backup(self, volume, credential, *more):
        task, took = self.task("cloudsnap", "backup", volume, "--cred-id", credential, *more)
        return {
            **took,
            "stored_bytes": task["uploadedBytes"],
            "puts": task["requests"]["put"],
            "snap": task["cloudSnapshotId"],
        }

    def restore(self, snap, credential, volume):
        _, took = self.task("cloudsnap", "restore", "--snap", snap, "--cred-id", credential, "--volume", volume)
        return took
