"""Working directory: an own filesystem, if possible."""

import contextlib
import os
import shutil
import subprocess

import bench

# Sparse: the benchmark writes a small part of it.
IMAGE_BYTES = 64 << 30


@contextlib.contextmanager
def working_directory(parent):
    """A temporary directory, as root on an own ext4 filesystem.

    Layers of scattered blocks have very many extents. A filesystem that is mounted with `discard` may take minutes to
    delete them, which is not measured.
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
    """Mounts an own filesystem; returns false if that fails."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        print("no own filesystem (requires root and mkfs.ext4): deleting the volumes may take long")
        return False
    with open(image, "xb") as file:
        file.truncate(IMAGE_BYTES)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=False)
    if made.returncode != 0:
        return False
    done = subprocess.run(["mount", "-o", "loop,nodiscard", str(image), str(place)], check=False)
    if done.returncode != 0:
        print("no own filesystem (mount failed): deleting the volumes may take long")
    return done.returncode == 0
