"""tools/bench share: from which length on a run of blocks is better shared between two files than copied."""

import argparse
import fcntl
import os
import random
import statistics
import struct
import sys
import tempfile
import time

FICLONERANGE = 0x4020940D
STRIDE_BYTES = 4 << 20
WAYS = ("copied", "shared", "copied over", "shared over")

EPILOG = """\
Runs of a length, 4 MiB apart and in random order, are brought from one sparse file to the same place of another one, which is synced at
the end, as a merge of layers does it: copied through a buffer (pread, pwrite), or shared (FICLONERANGE). OVER is where the
target holds the run already. Microseconds a run, the sync included, medians of all rounds; the ways take turns.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="tools/bench share",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares copying runs of blocks to sharing them, on a filesystem that can (XFS, btrfs).",
        epilog=EPILOG,
    )
    parser.add_argument("dir", help="where to work: a directory of that filesystem")
    parser.add_argument("--runs", type=int, default=2000, help="how many runs of each length [2000; a quarter from 256 KiB on]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    return parser.parse_args()


def sparse_file(folder, runs, content):
    """A synced file with runs of this content, or without any."""
    file = tempfile.TemporaryFile(dir=folder, buffering=0)
    os.ftruncate(file.fileno(), runs * STRIDE_BYTES)
    if content:
        for number in range(runs):
            os.pwrite(file.fileno(), content, number * STRIDE_BYTES)
    os.fsync(file.fileno())
    return file


def once(folder, way, size, runs):
    over = way.endswith("over")
    with sparse_file(folder, runs, os.urandom(size)) as source, sparse_file(folder, runs, b"x" * size if over else b"") as target:
        began = time.monotonic()
        for number in random.Random(1).sample(range(runs), runs):
            at = number * STRIDE_BYTES
            if way.startswith("copied"):
                os.pwrite(target.fileno(), os.pread(source.fileno(), size, at), at)
            else:
                fcntl.ioctl(target, FICLONERANGE, struct.pack("qQQQ", source.fileno(), at, size, at))
        os.fdatasync(target.fileno())
        return (time.monotonic() - began) / runs * 1e6


def main():
    given = arguments()
    print("KiB  " + "  ".join(f"{way:>11}" for way in WAYS))
    for kib in (4, 8, 16, 32, 64, 128, 256, 1024):
        runs = given.runs if kib < 256 else given.runs // 4
        took = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                try:
                    took[way].append(once(given.dir, way, kib << 10, runs))
                except OSError as error:
                    sys.exit(f"bench: {way}, {kib} KiB: {error}")
        print(f"{kib:4} " + "  ".join(f"{statistics.median(took[way]):8.1f} us" for way in WAYS), flush=True)


main()
