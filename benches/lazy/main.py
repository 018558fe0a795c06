"""tools/bench lazy: lazy volumes and browsed images, from a store with latency."""

import random
import sys

import bench
import data
import mounts
import places
from proxy import Proxy
from subject import Subject

from bench import MIB

EPILOG = """\
An ext4 filesystem with files of this host (and random ones, if those do not suffice) at the start of a volume is backed up to
SeaweedFS, and restored through a proxy that delays each request by DELAY ms. All rates refer to the size of that filesystem.

  there       from the command until the volume can be opened
  first byte  of a new lazy volume: from opening the export until 4 KiB at a random offset are read; median and maximum
  unhydrated  sequential read of a new lazy volume, 8 requests of 1 MiB in flight, compared with a plain restore; 5 of each alternate, medians
  CPU         CPU time of a plain restore relative to that of such a read, of all processes: the limit of the ratio if all cores are busy
  hydrated    read of a hydrated lazy volume, compared with a plain volume; interleaved, medians of 25 (single reads vary by a factor of 3)
  mounted     from the command until a file of the lazy volume's ext4 is read, through nbdfuse and a loop device; as root only
  disk.img    of a browsed snapshot, with a restarted daemon each time: from the start of daemon and mount until the image is visible,
              4 KiB at a random offset, then sequentially; compared with restic mount, borg mount (from a directory), rclone mount of
              the raw image, and s3backer (blocks of 128 KiB), if installed: apt-get install restic borgbackup rclone s3backer
  full TiB    a generated snapshot in a directory with the index of a full TiB: first bytes of new lazy volumes and of the export
              cloud:ID, with a separate daemon, and its maximum memory

Goals: first byte within 4 requests + 20 ms; unhydrated >= 0.95 x a plain restore; hydrated >= 0.97 x a plain volume; mounted and
a file read within 1 s at 20 ms; full TiB: first byte within 20 ms in addition to its requests, which are local here; no daemon
with more than 200 MiB (256 MiB for the full TiB).
"""


def arguments():
    parser = bench.arguments("lazy", "Measures lazy restores and browsed images.", EPILOG)
    parser.add_argument("--data-mib", type=int, default=1024, help="data in the filesystem [1024]")
    parser.add_argument("--size-gib", type=int, default=16384, help="size of the volume [16384]")
    parser.add_argument("--delays-ms", default="0,20,100", help="delays of each request [0,20,100]")
    parser.add_argument("--places", type=int, default=7, help="first bytes measured [7]")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of hydrated reads [25]")
    parser.add_argument("--look-s", type=int, default=10, help="maximum duration of the sequential read of a mounted image [10]")
    parser.add_argument("--without-tebibyte", action="store_true", help="skip the row of the full TiB")
    parser.add_argument("--without-peers", action="store_true", help="skip other tools")
    parser.add_argument("--weed", help="SeaweedFS [target/venv/bin/weed, or in PATH]")
    return parser.parse_args()


def fill_peers(given, dir, store, port, image):
    found, skipped = [], []
    for kind in () if given.without_peers else mounts.ALL:
        if not kind.is_there():
            skipped.append(f"{kind.name}: not installed")
            continue
        peer = kind(dir, store, port)
        try:
            peer.fill(image)
            found.append(peer)
        except (OSError, TimeoutError) as error:
            skipped.append(f"{kind.name}: {error}")
    return found, skipped


def with_data(image, length, count):
    """Returns random offsets with data: zeroes need no request."""
    noise, found = random.Random(3), []
    with open(image, "rb") as file:
        while len(found) < count:
            offset = noise.randrange(length // 4096) * 4096
            file.seek(offset)
            if any(file.read(4096)):
                found.append(offset)
    return found


def look_into(given, subject, peers, offsets, length, delay_ms, skipped):
    # Each offset needs a restart of the daemon.
    offsets = offsets[:3]
    found = [subject.browsed(offsets, length, given.look_s)]
    for peer in peers:
        if peer.needs_directory and delay_ms:
            continue
        try:
            found.append(peer.measure(offsets, length, given.look_s))
        except (OSError, TimeoutError) as error:
            skipped.append(f"{peer.name} at {delay_ms} ms: {error}")
    return found


def report_tebibyte(found):
    slowest = max(found["clone"] + found["export"])
    clone, export = (sorted(found[kind])[len(found[kind]) // 2] for kind in ("clone", "export"))
    print(
        f"full TiB: there in {max(found['there']):.0f} ms; first byte {clone:.1f} ms of a clone,"
        f" {export:.1f} ms of cloud:ID, slowest {slowest:.1f} ms; {found['memoryMiB']:.0f} MiB at most"
    )
    goals = {"first byte": slowest <= 20, "memory": found["memoryMiB"] <= 256}
    print("        " + ", ".join(f"{name}: {'met' if met else 'NOT MET'}" for name, met in goals.items()))


def report(found):
    print("delay   there  first byte  slowest  requests  restore  unhydrated   (CPU)           hydrated   plain  ratio  mounted  memory")
    for one in found:
        unhydrated = one["unhydratedMiBs"] / one["plainRestoreMiBs"]
        hydrated = one["hydratedMiBs"] / one["plainMiBs"]
        mounted = one["mounted"]
        print(
            f"{one['delayMs']:3} ms  {one['thereS']:4.2f} s  {one['firstByteMs']:7.1f} ms  {one['firstByteSlowestMs']:4.0f} ms"
            f"  {one['firstByteRequests']:8}  {one['plainRestoreMiBs']:7.0f}  {one['unhydratedMiBs']:7.0f} ({unhydrated:4.2f} x)  {one['unhydratedCpuLimit']:4.2f} x"
            f"  {one['hydratedMiBs']:9.0f}  {one['plainMiBs']:6.0f}  {hydrated:5.2f}"
            f"  {mounted['seconds'] if mounted else float('nan'):5.2f} s  {one['memoryMiB']:3.0f} MiB"
        )
        first = [one["firstByteSlowestMs"], one["looks"][0]["firstByteSlowestMs"]]
        goals = {
            "first byte": max(first) <= 4 * one["delayMs"] + 20,
            "unhydrated": unhydrated >= 0.95,
            "hydrated": hydrated >= 0.97,
            "memory": one["memoryMiB"] <= 200,
        }
        if mounted and one["delayMs"] <= 20:
            goals["mounted"] = mounted["seconds"] <= 1
        print("        " + ", ".join(f"{name}: {'met' if met else 'NOT MET'}" for name, met in goals.items()))
    print("\nmounted image    delay   seen after  first byte  slowest  in order")
    for one in found:
        for look in one["looks"]:
            print(
                f"{look['name']:15}  {one['delayMs']:3} ms  {look['readyS']:8.2f} s  {look['firstByteMs']:7.0f} ms"
                f"  {look['firstByteSlowestMs']:4.0f} ms  {look['inOrderMiBs']:5.0f} MiB/s"
            )


def main():
    given = arguments()
    target = bench.build_blockd().parent
    bench.build("-p", "blockd-benches", "--bin", "delay_proxy")
    if not given.without_tebibyte:
        bench.build("-p", "blockd-testkit", "--example", "tebibyte")
    weed = places.find_weed(given.weed)
    if not weed:
        sys.exit("bench: SeaweedFS is missing: tools/test installs it, or give --weed")
    skipped, found = [], []
    with bench.directory(given.dir) as dir:
        subject = proxy = store = None
        try:
            store = places.S3(dir, weed)
            proxy = Proxy(target / "delay_proxy", int(store.endpoint.rsplit(":", 1)[1]))
            subject = Subject(target, dir, store, proxy.port)
            tebibyte = None if given.without_tebibyte else subject.tebibyte()
            length = (given.data_mib * 23 // 20 + 64) * MIB
            image, files = data.make_image(dir, length, given.data_mib * MIB)
            snap = subject.fill(image, given.size_gib)
            peers, skipped = fill_peers(given, dir, store, proxy.port, image)
            offsets = with_data(image, length, given.places)
            image.unlink()
            for delay_ms in (int(delay) for delay in given.delays_ms.split(",") if delay):
                proxy.delay(delay_ms)
                one = {"delayMs": delay_ms, **subject.first_bytes(snap, proxy, offsets)}
                one |= subject.rates(snap, length, given.rounds)
                number = random.randrange(min(files, 500))
                one["mounted"] = subject.mounted(snap, f"0/{number}")
                one["memoryMiB"] = subject.peak_mib(subject.children[-1])
                one["looks"] = look_into(given, subject, peers, offsets, length, delay_ms, skipped)
                found.append(one)
        except bench.Failed as error:
            sys.exit(f"bench: {error}")
        finally:
            for what in (subject and subject.end, proxy and proxy.stop, store and store.stop):
                if what:
                    what()
    report(found)
    if tebibyte:
        report_tebibyte(tebibyte)
    for line in skipped:
        print(f"not measured: {line}")
    document = {"delays": found, "tebibyte": tebibyte, "notMeasured": skipped}
    bench.write_figures(given, "lazy", document)


main()
