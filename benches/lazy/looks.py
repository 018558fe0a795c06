"""Measures of a mounted image: first bytes, and the rate of a sequential read."""

import os
import statistics
import time


def wait_for(root, pattern, timeout_s=120):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            found = sorted(root.glob(pattern))
            if found and found[0].is_file():
                return found[0]
        except OSError:
            pass
        time.sleep(0.005)
    raise TimeoutError(f"{root / pattern} does not appear")


def read_all(file, buf):
    view = memoryview(buf)
    while view:
        got = os.readv(file, [view])
        if got == 0:
            return
        view = view[got:]


def look(name, at, mount, pattern, offsets, length, most_s):
    """Mounts once for each offset and reads there, and reads sequentially after the last mount. `mount` returns a function
    that unmounts."""
    at.mkdir(exist_ok=True)
    ready, first, rate = [], [], 0
    for nth, offset in enumerate(offsets):
        began = time.monotonic()
        umount = mount(at)
        try:
            path = wait_for(at, pattern)
            ready.append(time.monotonic() - began)
            file = os.open(path, os.O_RDONLY)
            began = time.monotonic()
            os.pread(file, 4096, offset)
            first.append((time.monotonic() - began) * 1000)
            if nth == len(offsets) - 1:
                buf, done = bytearray(1 << 20), 0
                began = time.monotonic()
                while done < length and time.monotonic() - began < most_s:
                    read_all(file, buf)
                    done += len(buf)
                rate = done / (1 << 20) / (time.monotonic() - began)
            os.close(file)
        finally:
            umount()
    at.rmdir()
    return {
        "name": name,
        "readyS": statistics.median(ready),
        "firstByteMs": statistics.median(first),
        "firstByteSlowestMs": max(first),
        "inOrderMiBs": rate,
    }
