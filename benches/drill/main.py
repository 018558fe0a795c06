"""tools/bench drill: restore drills of a filesystem in a store with latency."""

import os
import subprocess
import sys
from pathlib import Path

import bench

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lazy"))

import data
import places
from proxy import Proxy
from subject import Subject

from bench import MIB

EPILOG = """\
An ext4 filesystem with files of this host (and random ones, if those do not suffice) and an unfinished journal is backed up to SeaweedFS,
and drilled through a proxy that delays each request by DELAY ms. Each drill has its own sample of files.

  first byte, mounted, checked, done   since the start of the drill; medians
  requests, fetched                    requests to the store, and bytes from it, as a share of the data; maximum

Goals: mounted within 10 s and less than 10 % fetched, at 20 ms and 8 GiB.
"""

MOUNTED_S, FETCHED = 10, 0.1
# Blocks of a transaction of the journal.
TRANSACTION = 500


def arguments():
    parser = bench.arguments("drill", "Measures restore drills.", EPILOG)
    parser.add_argument("--data-mib", type=int, default=8192, help="data in the filesystem [8192]")
    parser.add_argument("--journal-blocks", type=int, default=12000, help="blocks of 4 KiB in the unfinished journal; 0: none [12000]")
    parser.add_argument("--delays-ms", default="0,20", help="delays of each request [0,20]")
    parser.add_argument("--rounds", type=int, default=3, help="drills at each delay [3]")
    parser.add_argument("--weed", help="SeaweedFS [target/venv/bin/weed, or in PATH]")
    return parser.parse_args()


def debugfs(image, *commands):
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    command = ["debugfs", "-w", "-f", "-", str(image)]
    done = subprocess.run(command, check=True, env=environment, input="\n".join(commands), capture_output=True, text=True)
    return done.stdout


def leave_journal(image, count):
    """Writes transactions of free blocks to the journal, as a crash leaves them."""
    first = int(debugfs(image, "ffb 1 ").split("Free blocks found: ")[1].split()[0])
    writes = [f"jw -b {at}-{min(at + TRANSACTION, first + count) - 1} /dev/zero" for at in range(first, first + count, TRANSACTION)]
    debugfs(image, "jo", *writes, "jc")


def median(values):
    return sorted(values)[len(values) // 2]


def measure(subject, snap, rounds, stored):
    """Drills the cloud snapshot, each time with a daemon without its indexes in memory."""
    found = []
    for seed in range(rounds):
        subject.stop(subject.children[-1])
        subject.start_daemon()
        subject.ctl("cloudsnap", "drill", "run", snap, "--seed", str(seed), "--wait")
        found.append(subject.ctl("cloudsnap", "drill", "list", "--max", "1")["items"][0])
    ends = [{step["stage"]: step["elapsedMillis"] / 1000 for step in drill["steps"]} for drill in found]
    return {
        "firstByteS": median([end["first-byte"] for end in ends]),
        "mountedS": median([end["mount"] for end in ends]),
        "checkedS": median([end["check"] for end in ends]),
        "doneS": median([end["files"] for end in ends]),
        "requests": max(drill["requests"] for drill in found),
        "fetched": max(drill["fetchedBytes"] for drill in found) / stored,
        "drills": found,
    }


def report(found):
    print("delay   first byte  mounted  checked      done  requests  fetched")
    for one in found:
        print(
            f"{one['delayMs']:3} ms  {one['firstByteS']:8.2f} s  {one['mountedS']:5.2f} s  {one['checkedS']:5.2f} s"
            f"  {one['doneS']:6.2f} s  {one['requests']:8}  {one['fetched']:6.1%}"
        )
        goals = {"mounted": one["mountedS"] <= MOUNTED_S, "fetched": one["fetched"] < FETCHED}
        print("        " + ", ".join(f"{name}: {'met' if met else 'NOT MET'}" for name, met in goals.items()))


def main():
    given = arguments()
    target = bench.build_blockd().parent
    bench.build("-p", "blockd-benches", "--bin", "delay_proxy")
    weed = places.find_weed(given.weed)
    if not weed:
        sys.exit("bench: SeaweedFS is missing: tools/test installs it, or give --weed")
    found = []
    with bench.directory(given.dir) as dir:
        subject = proxy = store = None
        try:
            store = places.S3(dir, weed)
            proxy = Proxy(target / "delay_proxy", int(store.endpoint.rsplit(":", 1)[1]))
            subject = Subject(target, dir, store, proxy.port)
            length = (given.data_mib * 23 // 20 + 256) * MIB
            image, _ = data.make_image(dir, length, given.data_mib * MIB)
            if given.journal_blocks:
                leave_journal(image, given.journal_blocks)
            snap = subject.fill(image, -(-length // (1024 * MIB)))
            image.unlink()
            stored = subject.ctl("cloudsnap", "inspect", snap)["storedBytes"]
            for delay_ms in (int(delay) for delay in given.delays_ms.split(",") if delay):
                proxy.delay(delay_ms)
                found.append({"delayMs": delay_ms, **measure(subject, snap, given.rounds, stored)})
        except bench.Failed as error:
            sys.exit(f"bench: {error}")
        finally:
            for what in (subject and subject.end, proxy and proxy.stop, store and store.stop):
                if what:
                    what()
    report(found)
    bench.write_figures(given, "drill", {"storedBytes": stored, "delays": found})


main()
