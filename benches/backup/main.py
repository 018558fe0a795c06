"""tools/bench backup: backups of blockd, compared with restic, borg and qemu-img."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import bench as shared
import data
import growth
import guest
import peers
import places
import rates
import report
import subject

MIB = 1 << 20
VOLUME_BYTES = 8 << 30
LARGE_BYTES = 16 << 40
# Space for all copies, as a multiple of the data.
SPACE_FACTOR = 14
# Locations of blockd by the variant under measurement, with its volume.
OURS = (
    ("encrypted", "vm", {"is_encrypted": True}),
    ("not-deduplicated", "vm", {"is_encrypted": True, "deduplicate": "off"}),
    ("zstd-6", "vm", {"is_encrypted": True, "compression": "zstd:6"}),
    ("plain", "vm", {"is_encrypted": False}),
    ("16-TiB", "large", {"is_encrypted": True}),
)

EPILOG = """\
An ext4 filesystem on an 8 GiB device is filled with files of this host. Each tool makes a full backup; then 2,000 random 4 KiB blocks and one
extent of 32 MiB are overwritten with incompressible data, and each tool makes the next backup and restores it. The restored content is
compared. blockd repeats this without deduplication, with zstd:6, without encryption, and with a 16 TiB volume that holds the same filesystem.

restic and borg read the image of the device, both with zstd; borg uses fixed-size chunks without encryption. qemu-img (zstd) and the baselines, cp and rclone, have
no incremental backups. rclone sends only the data of the image. CPU is that of the tool; for blockd, of its daemon. SeaweedFS runs on the same cores
and is not included. Requests are counted for blockd only. Caches are not dropped: the image and the volume are in memory if they fit.

--rates measures full backups (--reupload) and restores through a proxy that delays each request, to SeaweedFS and Azurite, without other tools.
Beside them, a probe with the same store client sends as many objects of the same length with bare PUTs and reads them with bare GETs, with the
number of requests in flight (1 to 32, in parentheses) that was fastest before. Rates are MiB of stored bytes per second; `peak` is the daemon's
memory in MiB. Rounds alternate; medians, and the highest peak. `noise` is incompressible, so that sealing takes the least CPU time for each byte.

--growth measures stored bytes in a directory beside restic. `days` backs up a filesystem (--data, such as 128M) each day of --days, after 2 % of it
changed in extents of 32 KiB: half are new and incompressible, a quarter is former content at another place, a quarter is copied to another place.
Copies are aligned to 32 KiB, which favours blocks over content-defined chunks. On the first day no content is former: three quarters are new. Each
seventh increment is a full backup. In the end both tools delete all but the last 7 backups. `clones` backs up 10 volumes of one image; in each, 5 %
of the data are replaced by other files of this host, in extents of 1 to 16 blocks.

`seal` is the rate of zstd:4 and AES-256-GCM-SIV in memory on all cores, with the same data.
"""


def size(text):
    units = {"M": 20, "G": 30}
    digits, unit = text[:-1], text[-1:].upper()
    if not digits.isdigit() or unit not in units or not 64 * MIB <= int(digits) << units[unit] <= 6 << 30:
        raise argparse.ArgumentTypeError(f"{text} is not a size from 64M to 6G")
    return int(digits) << units[unit]


def arguments():
    parser = shared.arguments("backup", "Measures full and incremental backups and restores, to a directory and to SeaweedFS, compared with other tools.", EPILOG)
    parser.add_argument("--data", type=size, default=4 << 30, help="data in the filesystem, such as 1G [4G]")
    parser.add_argument("--places", default="local,s3", help="backup locations [local,s3; with --rates s3,azure]")
    parser.add_argument("--rates", choices=("noise", "files"), help="measure only rates beside bare PUTs and GETs, with this data")
    parser.add_argument("--delays-ms", default="0,20,100", help="with --rates: delays of each request [0,20,100]")
    parser.add_argument("--rounds", type=int, default=3, help="with --rates: rounds of each delay [3]")
    parser.add_argument("--growth", choices=("days", "clones"), help="measure only the stored bytes of many backups")
    parser.add_argument("--days", type=int, default=30, help="with --growth days: increments [30]")
    parser.add_argument("--guest-seconds", type=int, default=8, help="duration of each pass of guest writes; 0 for none [8]")
    parser.add_argument("--no-install", action="store_true", help="skip missing tools")
    parser.add_argument("--blockd", help="blockd binary; blockctl, with --rates delay_proxy and transfer_probe too, in the same directory [the release build]")
    parser.add_argument("--weed", help="SeaweedFS [target/venv/bin/weed, or in PATH]")
    return parser.parse_args()


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def pack(image, target):
    """Copies the data of a sparse file without its holes."""
    with open(image, "rb") as source, open(target, "wb") as out:
        end, at = os.fstat(source.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(source.fileno(), at, os.SEEK_HOLE)
            source.seek(at)
            while at < hole:
                part = source.read(min(hole - at, 8 * MIB))
                out.write(part)
                at += len(part)


def seal_rate(packed):
    """Returns the rate of zstd:4, the fastest level of `auto` without guests, and AES-256-GCM-SIV on all cores."""
    command = ["cargo", "bench", "--locked", "-q", "-p", "blockd-benches", "--bench", "seal", "--", str(packed)]
    env = {**os.environ, "CARGO_TARGET_DIR": str(shared.TARGET.parent)}
    done = subprocess.run(command, cwd=shared.ROOT, env=env, check=True, capture_output=True, text=True)
    rates = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(rate for rate in rates if rate["compression"] == "zstd:4")


class Bench:
    def __init__(self, given, dir):
        self.given, self.dir = given, dir
        self.steps, self.places, self.blockd = {}, [], None

    def open(self):
        given, dir = self.given, self.dir
        for name in given.places.split(","):
            if name == "local":
                self.places.append(places.Local(dir))
            elif name == "s3":
                weed = places.find_weed(given.weed)
                if weed:
                    self.places.append(places.S3(dir, weed))
                else:
                    say("skipped: SeaweedFS is missing: tools/test installs it, or give --weed")
            else:
                sys.exit(f"bench: --places: {name} is neither local nor s3")
        wanted = {"local": peers.LOCAL, "s3": peers.S3}
        chosen = [(place, peer) for place in self.places for peer in wanted[place.name]]
        classes = {peer for _, peer in chosen}
        missing = [peer.name for peer in classes if not peer.is_there()] if given.no_install else peers.install(classes)
        for name in missing:
            say(f"skipped: {name} is missing and could not be installed")
        self.peers = [peer(place, dir) for place, peer in chosen if peer.is_there()]
        say("creating the filesystem")
        self.image, self.files = data.make_image(dir, VOLUME_BYTES, given.data)
        self.data_bytes = data.allocated(self.image)
        pack(self.image, dir / "packed")
        self.blockd = subject.Blockd(given.blockd or shared.build_blockd(), dir)
        self.blockd.make_volume("vm", VOLUME_BYTES, self.image)
        self.blockd.make_volume("large", LARGE_BYTES, self.image)
        # (tool, place) -> (volume, credential)
        self.ours = {}
        for place in self.places:
            for tool, volume, options in OURS:
                # One bucket holds one repository.
                if place.name == "s3" and tool != "encrypted":
                    continue
                credential = f"{place.name}-{tool}"
                self.blockd.make_credential(credential, place, **options)
                self.ours[tool, place.name] = (volume, credential)
        for peer in list(self.peers):
            with self.tolerated(peer):
                peer.begin()

    @contextlib.contextmanager
    def tolerated(self, peer):
        """Excludes a peer that fails from later steps; its earlier results stay."""
        try:
            yield
        except shared.Failed as error:
            say(f"excluded: {peer.name}, {peer.place.name}: {error}")
            self.peers.remove(peer)

    def note(self, step, tool, place, took):
        self.steps[step, tool, place] = took
        say(f"{step}, {tool}, {place}: {took['seconds']:.2f} s")

    def settle(self):
        os.sync()
        time.sleep(1)

    def backups(self, step):
        for (tool, place), (volume, credential) in self.ours.items():
            self.settle()
            self.note(step, tool, place, self.blockd.backup(volume, credential))
        for peer in list(self.peers):
            if step == "full" or peer.is_incremental:
                with self.tolerated(peer):
                    self.settle()
                    before = peer.stored()
                    took = peer.backup(self.image)
                    self.settle()
                    took["stored_bytes"] = peer.stored() - before
                    self.note(step, peer.name, peer.place.name, took)

    def write(self):
        with open(self.image, "r+b") as image:
            for offset, payload in data.changes(VOLUME_BYTES):
                os.pwrite(image.fileno(), payload, offset)
        for volume in ("vm", "large"):
            self.blockd.write(volume, data.changes(VOLUME_BYTES))

    def restores(self):
        for (tool, place), (_, credential) in self.ours.items():
            snap = self.steps["incremental", tool, place]["snap"]
            self.settle()
            self.note("restore", tool, place, self.blockd.restore(snap, credential, "restored"))
            if tool != "16-TiB":
                self.compare(self.blockd.uri("restored"), tool)
            self.blockd.ctl("volume", "delete", "restored")
        target = self.dir / "restored"
        for peer in list(self.peers):
            with self.tolerated(peer):
                self.settle()
                self.note("restore", peer.name, peer.place.name, peer.restore(target))
                if peer.is_incremental:
                    self.compare(target, peer.name)
            target.unlink(missing_ok=True)

    def compare(self, restored, tool):
        command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(self.image), str(restored)]
        if subprocess.run(command, capture_output=True).returncode:
            raise shared.Failed(f"wrong content restored by {tool}")

    def guest(self):
        if self.given.guest_seconds and ("encrypted", "local") in self.ours and shutil.which("fio"):
            say("measuring guest writes")
            return guest.measure(self.blockd, "vm", "local-encrypted", self.given.guest_seconds, 3)
        return None

    def close(self):
        if self.blockd:
            self.blockd.stop()
        for place in self.places:
            place.stop()


def print_report(bench, limit, found):
    names = {tool: f"blockd, {tool}" for tool, _, _ in OURS}
    print(f"{bench.files} files, {bench.data_bytes / MIB:.0f} MiB of data on {VOLUME_BYTES >> 30} GiB, {os.cpu_count()} cores; "
          f"dirty before the incremental backup: {data.DIRTY_BYTES / MIB:.1f} MiB")
    print(f"zstd:4 + AES-256-GCM-SIV in memory on {limit['threads']} threads: {limit['mib_per_s']} MiB/s")
    for place in bench.places:
        for step in ("full", "incremental", "restore"):
            rows = [(names.get(tool, tool), took) for (what, tool, where), took in bench.steps.items()
                    if (what, where) == (step, place.name)]
            report.table(f"{step}, {place.name}", rows)
    report.print_goals(found)


def main():
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if given.rates and given.places == "local,s3":
        given.places = "s3,azure"
    for is_asked, part, name in ((given.rates, rates, "backup-rates"), (given.growth, growth, "backup-growth")):
        if not is_asked:
            continue
        try:
            document = part.run(given)
        except shared.Failed as error:
            sys.exit(f"bench: {error}")
        shared.write_figures(given, name, document)
        return
    for program, package in (("mke2fs", "e2fsprogs"), ("nbdcopy", "libnbd-bin"), ("qemu-img", "qemu-utils"), ("setpriv", "util-linux")):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            sys.exit(f"bench: {program} is missing: apt-get install {package}")
    parent = given.dir or os.environ.get("TMPDIR", "/var/tmp")
    free = shutil.disk_usage(parent).free
    if free < SPACE_FACTOR * given.data:
        sys.exit(f"bench: {parent} has {free >> 30} GiB free, {SPACE_FACTOR * given.data >> 30} are needed: --dir or --data")
    with shared.directory(given.dir) as dir:
        bench = Bench(given, dir)
        try:
            bench.open()
            limit = seal_rate(dir / "packed")
            bench.backups("full")
            bench.write()
            bench.backups("incremental")
            bench.restores()
            latencies = bench.guest()
        except shared.Failed as error:
            sys.exit(f"bench: {error}")
        finally:
            bench.close()
    found = report.goals(bench.steps, bench.data_bytes / MIB / limit["mib_per_s"])
    print_report(bench, limit, found)
    if latencies:
        report.print_guest(latencies)
    document = {
        "data_bytes": bench.data_bytes,
        "seal": limit,
        "steps": [{"step": step, "tool": tool, "place": place, **took} for (step, tool, place), took in bench.steps.items()],
        "goals": [dict(zip(("what", "value", "goal", "met"), one)) for one in found],
        "guest": latencies,
    }
    shared.write_figures(given, "backup", document)


if __name__ == "__main__":
    main()
