"""Where the bench works: a filesystem of its own, if it can have one."""

import contextlib
import os
import shutil
import subprocess

import bench

# Sparse; what the bench writes is a small part of it.
IMAGE_BYTES = 64 << 30


@contextlib.contextmanager
def working_directory(parent):
    """A new directory, which is gone afterwards, on an ext4 of its own where root can mount one.

    Layers of scattered blocks are in very many pieces. A host's filesystem that is mounted with `discard` may take
    minutes to remove them, which is nothing that is measured here.
    """
    with bench.directory(parent) as work:
        place = work / "mnt"
        place.mkdir()
        mounted = mount(work / "image", place)
        try:
            yield place
        finally:
            if mounted:
                subprocess.run(["umount", str(place)], check=True)


def mount(image, place):
    """Whether there is an own filesystem at that place now."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        print("no filesystem of its own (that needs root and mkfs.ext4): removing the volumes may take long")
        return False
    with open(image, "xb") as file:
        file.truncate(IMAGE_BYTES)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=False)
    if made.returncode != 0:
        return False
    done = subprocess.run(["mount", "-o", "loop,nodiscard", str(image), str(place)], check=False)
    if done.returncode != 0:
        print("no filesystem of its own (it cannot be mounted here): removing the volumes may take long")
    return done.returncode == 0
