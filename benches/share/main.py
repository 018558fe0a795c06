"""tools/bench share: extent length from which sharing between two files is faster than copying."""

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
Extents of one length, 4 MiB apart and in random order, are transferred from one sparse file to the same offset of another one, which is
then synced, as in a merge of layers: copied through a buffer (pread, pwrite), or shared (FICLONERANGE). OVER: the target already has
data there. Results are microseconds per extent including the sync, medians of all rounds; the methods alternate.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="tools/bench share",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares copying and sharing of extents on a filesystem with reflinks (XFS, btrfs).",
        epilog=EPILOG,
    )
    parser.add_argument("dir", help="directory on that filesystem")
    parser.add_argument("--runs", type=int, default=2000, help="extents of each length [2000; a quarter from 256 KiB on]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds [3]")
    return parser.parse_args()


def sparse_file(folder, runs, content):
    """Creates a synced file with extents of this content, or an empty one."""
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
