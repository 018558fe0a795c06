"""tools/bench list: listing and browsing of thousands of snapshots."""

import os
import statistics
import subprocess
import sys
import time

import bench

EPILOG = """\
The manifests of many snapshots are put into a directory store, and a daemon with an empty cache lists them.

  first list    cloudsnap list, which reads every manifest
  list          repeated: median
  first look    ls -l of the mount, of every volume and every snapshot, by a restarted daemon
  look          repeated, with dropped kernel caches: median

Goal: a list and a look within 250 ms.
"""


def arguments():
    parser = bench.arguments("list", "Measures lists of thousands of snapshots.", EPILOG)
    parser.add_argument("--volumes", type=int, default=5, help="volumes [5]")
    parser.add_argument("--each", type=int, default=1000, help="snapshots of each [1000]")
    parser.add_argument("--rounds", type=int, default=7, help="measured lists and looks [7]")
    return parser.parse_args()


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


def measure(given, dir, wanted):
    mount = dir / "mnt"
    (dir / "store").mkdir()
    made = [bench.TARGET / "examples/many_snapshots", dir / "store", str(given.volumes), str(given.each)]
    subprocess.run(made, check=True)
    # Short, so that each look lists again.
    (dir / "blockd.toml").write_text("[browse]\nrefresh_ms = 100\n")
    daemon = bench.Blockd(bench.TARGET / "blockd", dir, "--config", dir / "blockd.toml")
    try:
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
            # The caches of the kernel expire after a second.
            time.sleep(1.2)
            looks.append(timed(lambda: look(mount), wanted))
        found["lookMs"] = statistics.median(looks)
        daemon.ctl("browse", "umount", mount)
    finally:
        daemon.stop()
    return found


def main():
    given = arguments()
    bench.build_blockd()
    bench.build("-p", "blockd-testkit", "--example", "many_snapshots")
    wanted = given.volumes * given.each
    with bench.directory(given.dir) as dir:
        found = measure(given, dir, wanted)
    for name, what in (("firstListMs", "first list"), ("listMs", "list"), ("firstLookMs", "first look"), ("lookMs", "look")):
        print(f"{what:10}  {found[name]:7.0f} ms")
    is_met = found["listMs"] <= 250 and found["lookMs"] <= 250
    print(f"{wanted} snapshots; goal: {'met' if is_met else 'NOT MET'}")
    bench.write_figures(given, "list", found)


main()
