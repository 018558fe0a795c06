"""tools/bench list: thousands of snapshots, listed and browsed."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPILOG = """\
The manifests of many snapshots are put into a directory that serves as store, and a daemon that has never seen them lists them.

  first list    cloudsnap list, which reads every manifest
  list          the same again: median
  first look    ls -l of the mount, of every volume and every snapshot, by a restarted daemon
  look          the same again, with nothing in the kernel's caches: median

Goal: a list and a look within 250 ms.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="tools/bench list",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures lists of thousands of snapshots.",
        epilog=EPILOG,
    )
    parser.add_argument("--volumes", type=int, default=5, help="volumes [5]")
    parser.add_argument("--each", type=int, default=1000, help="snapshots of each [1000]")
    parser.add_argument("--rounds", type=int, default=7, help="lists and looks measured [7]")
    parser.add_argument("--dir", help="where to work; a new directory below it is made and removed [$TMPDIR or /var/tmp]")
    parser.add_argument("--json", help="where the figures go [list-bench.json below the build directory]")
    return parser.parse_args()


class Daemon:
    def __init__(self, target, dir):
        self.target, self.dir = target, dir
        # Listed again each time.
        (dir / "blockd.toml").write_text("[browse]\nrefresh_ms = 100\n")
        self.start()

    def start(self):
        command = [self.target / "blockd", "--data-dir", self.dir / "data", "--config", self.dir / "blockd.toml"]
        self.process = subprocess.Popen([str(part) for part in command], stderr=open(self.dir / "log", "ab"))
        for _ in range(600):
            try:
                return self.ctl("status")
            except subprocess.CalledProcessError:
                time.sleep(0.05)
        sys.exit("bench: blockd does not come up")

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def ctl(self, *args):
        command = [self.target / "blockctl", "--socket", self.dir / "data/blockd.sock", "--json", *args]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)


def timed(work, wanted):
    began = time.monotonic()
    found = work()
    took = time.monotonic() - began
    if found != wanted:
        sys.exit(f"bench: {found} snapshots instead of {wanted}")
    return took * 1000


def look(mount):
    found = 0
    for volume in os.scandir(mount):
        for entry in os.scandir(volume):
            entry.stat(follow_symlinks=False)
            found += entry.name != "latest"
    return found


def main():
    given = arguments()
    root, target = Path(__file__).resolve().parents[2], Path(os.environ["BLOCKD_BENCH_TARGET"])
    for what in (["-p", "blockd", "-p", "blockctl"], ["-p", "blockd-cloud", "--example", "many_snapshots"]):
        build = ["cargo", "build", "--release", "--locked", *what]
        subprocess.run(build, cwd=root, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(target.parent)})
    dir = Path(tempfile.mkdtemp(prefix="blockd-list-", dir=given.dir or os.environ.get("TMPDIR", "/var/tmp")))
    mount, wanted, daemon = dir / "mnt", given.volumes * given.each, None
    try:
        (dir / "store").mkdir()
        subprocess.run([target / "examples/many_snapshots", dir / "store", str(given.volumes), str(given.each)], check=True)
        daemon = Daemon(target, dir)
        daemon.ctl("credentials", "create", "here", "--provider", "local", "--path", dir / "store")
        listed = lambda: len(daemon.ctl("cloudsnap", "list"))
        found = {"snapshots": wanted, "firstListMs": timed(listed, wanted)}
        found["listMs"] = statistics.median(timed(listed, wanted) for _ in range(given.rounds))
        daemon.stop()
        daemon.start()
        daemon.ctl("browse", "mount", mount)
        found["firstLookMs"] = timed(lambda: look(mount), wanted)
        looks = []
        for _ in range(given.rounds):
            # What the kernel believes runs out after a second.
            time.sleep(1.2)
            looks.append(timed(lambda: look(mount), wanted))
        found["lookMs"] = statistics.median(looks)
        daemon.ctl("browse", "umount", mount)
    finally:
        if daemon:
            daemon.stop()
        shutil.rmtree(dir, ignore_errors=True)
    for name, what in (("firstListMs", "first list"), ("listMs", "list"), ("firstLookMs", "first look"), ("lookMs", "look")):
        print(f"{what:10}  {found[name]:7.0f} ms")
    is_met = found["listMs"] <= 250 and found["lookMs"] <= 250
    print(f"{wanted} snapshots; goal: {'met' if is_met else 'NOT MET'}")
    Path(given.json or target / "list-bench.json").write_text(json.dumps(found, indent=1))


main()
