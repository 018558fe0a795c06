"""Duration, CPU time and peak memory of commands and daemons."""

import os
import subprocess
import time
from pathlib import Path

from bench import Failed

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def command(*parts, env=None, cwd=None):
    """Runs a command; returns duration, CPU time and peak memory, including its child processes."""
    parts = [str(part) for part in parts]
    began = time.monotonic()
    child = subprocess.Popen(
        parts,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode:
        raise Failed(f"{' '.join(parts)}: {errors.decode(errors='replace')[-600:]}")
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


class Daemon:
    """Meter of the CPU time and peak memory of a running process."""

    def __init__(self, pid):
        self.pid = pid

    def status(self, name):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise Failed(f"no {name} of process {self.pid}")

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def measure(self, act):
        """Runs `act`; returns its result, and duration, CPU time and peak memory."""
        # Resets the peak memory.
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        cpu, began = self.cpu_seconds(), time.monotonic()
        result = act()
        return result, {
            "seconds": time.monotonic() - began,
            "cpu_seconds": self.cpu_seconds() - cpu,
            "peak_mib": self.status("VmHWM"),
        }
