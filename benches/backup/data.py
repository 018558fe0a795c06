"""Test data: an ext4 filesystem with files of this host, and the writes before the incremental backup."""

import os
import random
import shutil
import subprocess
from pathlib import Path

MIB = 1 << 20
SOURCES = ("/usr", "/opt", "/var/lib", "/home", "/root")
WRITES = 2000
EXTENT_BYTES = 32 * MIB


def stage(directory, length):
    """Copies files of this host up to a total length, and creates random ones if they do not suffice; returns their number."""
    left, number = length, 0
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                try:
                    size = path.lstat().st_size
                    if path.is_symlink() or not path.is_file() or not 0 < size <= left:
                        continue
                    target = directory / f"{number // 500}"
                    target.mkdir(exist_ok=True)
                    shutil.copyfile(path, target / f"{number}")
                except OSError:
                    continue
                left -= size
                number += 1
                if left < MIB:
                    return number
    noise = random.Random(1)
    while left > 0:
        (directory / f"noise-{left}").write_bytes(noise.randbytes(min(left, 64 * MIB)))
        left -= 64 * MIB
        number += 1
    return number


def last_files(length):
    """Returns content of the last files of the first directory, which `stage` copies late."""
    found = bytearray()
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort(reverse=True)
            for name in sorted(names, reverse=True):
                path = Path(folder, name)
                try:
                    if not path.is_symlink() and path.is_file() and path.stat().st_size <= MIB:
                        found += path.read_bytes()
                except OSError:
                    continue
                if len(found) >= length:
                    return bytes(found[:length])
    return bytes(found)


def make_image(directory, size_bytes, data_bytes):
    """Creates a sparse image of an ext4 filesystem with these files; returns its path and the number of files."""
    image, files = directory / "image", directory / "files"
    files.mkdir()
    try:
        count = stage(files, data_bytes)
        with open(image, "wb") as out:
            out.truncate(size_bytes)
        # Without discard, only blocks that the filesystem never wrote are holes.
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, image]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run([str(part) for part in command], check=True, env=environment)
    finally:
        shutil.rmtree(files, ignore_errors=True)
    return image, count


def changes(size_bytes):
    """Yields (offset, bytes) of 2,000 random blocks of 4 KiB and an extent of 32 MiB, all incompressible."""
    noise = random.Random(2)
    run = noise.randrange((size_bytes - EXTENT_BYTES) // 4096)
    inside = range(run, run + EXTENT_BYTES // 4096)
    blocks = set()
    while len(blocks) < WRITES:
        block = noise.randrange(size_bytes // 4096)
        if block not in inside:
            blocks.add(block)
    for block in sorted(blocks):
        yield block * 4096, noise.randbytes(4096)
    for part in range(EXTENT_BYTES // MIB):
        yield run * 4096 + part * MIB, noise.randbytes(MIB)


DIRTY_BYTES = WRITES * 4096 + EXTENT_BYTES


def allocated(path):
    """Returns the allocated bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_blocks * 512
    found = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found += Path(folder, name).lstat().st_blocks * 512
            except FileNotFoundError:
                pass
    return found
