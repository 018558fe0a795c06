"""Upload and restore rates of blockd beside bare PUTs and GETs of objects of the same size, through a proxy that delays each request."""

import base64
import hashlib
import hmac
import json
import os
import shutil
import statistics
import subprocess
import urllib.request
from email.utils import formatdate
from pathlib import Path

import bench
import data
import measure
import places
from lazy.proxy import Proxy
from subject import Blockd

MIB = 1 << 20
PACK_BYTES = 32 * MIB
PARALLEL = (1, 2, 4, 8, 16, 32)
GOAL_RATIO = 0.9
GOAL_PEAK_MIB = 160


class Azure:
    """Container of an Azurite on this host."""

    name = "azure"
    account, container = "benchacct", "bkt"
    key = base64.b64encode(b"bench" * 8).decode()

    def __init__(self, directory, main):
        port = places.free_ports()
        self.endpoint = f"http://127.0.0.1:{port}"
        command = ["env", f"AZURITE_ACCOUNTS={self.account}:{self.key}", "node", main, "--blobHost", "127.0.0.1", "--blobPort", port]
        command += ["--location", directory / "azurite", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        (directory / "azurite").mkdir()
        self.process = bench.Process(command, directory / "azurite.log")
        self.process.wait_until(self.create)

    def create(self):
        """Creates the container."""
        date = formatdate(usegmt=True)
        text = "PUT\n" + "\n" * 11 + f"x-ms-date:{date}\nx-ms-version:2021-12-02\n/{self.account}/{self.account}/{self.container}\nrestype:container"
        signature = base64.b64encode(hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()).decode()
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02", "Authorization": f"SharedKey {self.account}:{signature}"}
        url = f"{self.endpoint}/{self.account}/{self.container}?restype=container"
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="PUT"), timeout=5).status == 201

    def credential(self, _label):
        options = ["--provider", "azure", "--azure-endpoint", self.endpoint, "--bucket", self.container]
        return [*options, "--azure-account-name", self.account, "--azure-account-key", self.key]

    def config(self):
        auth = {"kind": "accountKey", "key": self.key}
        return {"type": "azure", "account": self.account, "container": self.container, "endpoint": self.endpoint, "auth": auth}

    def stop(self):
        self.process.stop()


class S3(places.S3):
    """The bucket of SeaweedFS, for the probe too."""

    def config(self):
        access, secret = self.keys
        address = self.endpoint.removeprefix("http://")
        keys = {"accessKey": access, "secretKey": secret}
        return {"type": "s3", "endpoint": address, "region": "us-east-1", "bucket": self.bucket, "disableSsl": True, **keys}


class Cpu:
    """CPU seconds of a client, and of the proxy and the server together."""

    def __init__(self, client, *others):
        self.client, self.others = measure.Daemon(client), [measure.Daemon(pid) for pid in others]
        self.take()

    def take(self):
        """Returns the seconds since the last call."""
        now = (self.client.cpu_seconds(), sum(other.cpu_seconds() for other in self.others))
        before, self.before = getattr(self, "before", now), now
        return tuple(round(one - other, 2) for one, other in zip(now, before))


class Probe:
    """The program `transfer_probe`."""

    def __init__(self, program, place, *others):
        self.child = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.child.stdin.write(json.dumps(place.config()) + "\n")
        self.cpu = Cpu(self.child.pid, *others)

    def measure(self, objects, length, puts, gets):
        """Returns the MiB/s and the CPU seconds of PUTs and of GETs."""
        self.cpu.take()
        self.child.stdin.write(f"{objects} {length} {puts} {gets}\n")
        results = [self.result(objects * length / MIB) for _ in range(2)]
        self.child.stdout.readline()
        return results

    def result(self, mib):
        line = self.child.stdout.readline()
        if not line:
            raise bench.Failed("the probe ended")
        return mib / float(line), self.cpu.take()

    def stop(self):
        self.child.stdin.close()
        self.child.wait()


def make_image(directory, given):
    """Returns an image: incompressible, or with the files of this host."""
    if given.rates == "files":
        size = (given.data * 23 // 20 // PACK_BYTES + 2) * PACK_BYTES
        return data.make_image(directory, size, given.data)[0]
    image = directory / "image"
    with open(image, "wb") as out:
        for _ in range(given.data // PACK_BYTES):
            out.write(os.urandom(PACK_BYTES))
    return image


def measured(blockd, probe, cpu, given):
    """Returns the medians of all rounds, in which probe and daemon alternate."""
    first = blockd.backup("vm", "store", "--full", "--reupload")
    objects = first["puts"] - 2
    length = first["stored_bytes"] // objects
    found = [probe.measure(objects, length, parallel, parallel) for parallel in PARALLEL]
    puts, gets = (max((rate, parallel) for (rate, _), parallel in zip(of_kind, PARALLEL))[1] for of_kind in zip(*found))
    rounds = []
    for _ in range(given.rounds):
        (put, put_cpu), (get, get_cpu) = probe.measure(objects, length, puts, gets)
        cpu.take()
        up = blockd.backup("vm", "store", "--full", "--reupload")
        up_cpu = cpu.take()
        down = blockd.restore(up["snap"], "store", "restored")
        down_cpu = cpu.take()
        blockd.ctl("volume", "delete", "restored")
        stored = up["stored_bytes"] / MIB
        rounds.append({
            "put": put, "get": get, "up": stored / up["seconds"], "down": stored / down["seconds"],
            "up_ratio": stored / up["seconds"] / put, "down_ratio": stored / down["seconds"] / get,
            "up_limit": cpu_limit(put_cpu, up_cpu), "down_limit": cpu_limit(get_cpu, down_cpu),
            "cpu_seconds": {"put": put_cpu, "up": up_cpu, "get": get_cpu, "down": down_cpu},
            "up_peak_mib": up["peak_mib"], "down_peak_mib": down["peak_mib"],
        })
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0] if name != "cpu_seconds"}
    for name in ("up_peak_mib", "down_peak_mib"):
        medians[name] = max(one[name] for one in rounds)
    return {"objects": objects, "object_mib": length / MIB, "puts": puts, "gets": gets, **medians, "rounds": rounds}


def cpu_limit(bare, ours):
    """Returns the ratio of the rates of two clients if all cores are busy all the time."""
    return sum(bare) / sum(ours)


def places_of(given, directory):
    for name in given.places.split(","):
        if name == "s3":
            weed = places.find_weed(given.weed)
            yield weed and S3(directory, weed)
        elif name == "azure":
            main = bench.ROOT / "target/azurite/node_modules/azurite/dist/src/blob/main.js"
            yield Azure(directory, main) if main.is_file() and shutil.which("node") else None


def run(given):
    """Measures all places and delays; prints the table and returns the document."""
    blockd = given.blockd or bench.build("-p", "blockd", "-p", "blockctl", "-p", "blockd-benches", "--bins")
    target = Path(blockd).parent
    found, failed = [], []
    with bench.directory(given.dir) as directory:
        servers = [place for place in places_of(given, directory) if place]
        image = make_image(directory, given)
        report_head()
        try:
            for place in servers:
                try:
                    for one in of_place(place, given, blockd, target, directory, image):
                        report_row(one)
                        found.append(one)
                except bench.Failed as error:
                    # The test server of one place may fail: the figures of the others stand.
                    failed.append(f"{place.name}: {error}")
        finally:
            for place in servers:
                place.stop()
    report_goals(found)
    for one in failed:
        print(f"not measured: {one}")
    if not found:
        raise bench.Failed("no place was measured")
    return {"rates": found, "failed": failed, "data": given.rates, "data_bytes": given.data}


def of_place(place, given, blockd, target, directory, image):
    """Yields the figures of each delay."""
    folder = directory / f"of-{place.name}"
    folder.mkdir()
    proxy = Proxy(target / "delay_proxy", int(place.endpoint.rsplit(":", 1)[1]))
    place.endpoint = f"http://127.0.0.1:{proxy.port}"
    others = (proxy.child.pid, place.process.pid)
    daemon, probe = Blockd(blockd, folder), Probe(target / "transfer_probe", place, *others)
    cpu = Cpu(daemon.process.pid, *others)
    try:
        daemon.make_volume("vm", os.path.getsize(image), image)
        daemon.make_credential("store", place, True)
        for delay_ms in (int(delay) for delay in given.delays_ms.split(",")):
            proxy.delay(delay_ms)
            yield {"place": place.name, "delay_ms": delay_ms, **measured(daemon, probe, cpu, given)}
    finally:
        daemon.stop()
        probe.stop()
        proxy.stop()


def report_head():
    print(f"{'store':7}{'delay':>7}{'objects':>14}{'PUT':>12}{'backup':>8}{'ratio':>7}{'CPU':>6}{'peak':>6}"
          f"{'GET':>12}{'restore':>9}{'ratio':>7}{'CPU':>6}{'peak':>6}", flush=True)


def report_row(one):
    print(
        f"{one['place']:7}{one['delay_ms']:4} ms{one['objects']:4} x {one['object_mib']:4.1f} M"
        f"{one['put']:7.0f} ({one['puts']:2}){one['up']:8.0f}{one['up_ratio']:7.2f}{one['up_limit']:6.2f}{one['up_peak_mib']:6.0f}"
        f"{one['get']:7.0f} ({one['gets']:2}){one['down']:9.0f}{one['down_ratio']:7.2f}{one['down_limit']:6.2f}{one['down_peak_mib']:6.0f}",
        flush=True,
    )


def report_goals(found):
    print("\ngoals")
    for one in found:
        for what in ("up", "down"):
            ratio, peak = one[f"{what}_ratio"], one[f"{what}_peak_mib"]
            met = {f"{ratio:.2f} of the probe >= {GOAL_RATIO}": ratio >= GOAL_RATIO, f"{peak:.0f} <= {GOAL_PEAK_MIB} MiB": peak <= GOAL_PEAK_MIB}
            texts = ", ".join(f"{text}: {'met' if is_met else 'NOT MET'}" for text, is_met in met.items())
            print(f"  {one['place']:6}{one['delay_ms']:4} ms {'backup' if what == 'up' else 'restore':8} {texts}")
