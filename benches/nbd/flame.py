"""Flame graphs of the CPU time of a server, as SVG.

`perf record` samples the process under the load of fio. Frames are as wide as their share of the samples, callers below;
frames narrower than a pixel are omitted.
"""

import re
import shutil
import signal
import subprocess
from html import escape
from pathlib import Path

WIDTH_PX = 1200
ROW_PX = 16
CHARACTER_PX = 6.4
MARGIN_PX = 10
SAMPLES_PER_S = 997


class Frame:
    """A function, called by the one below it."""

    def __init__(self, name):
        self.name = name
        self.samples = 0
        self.callees = {}

    def add(self, stack):
        self.samples += 1
        frame = self
        for name in stack:
            frame = frame.callees.setdefault(name, Frame(name))
            frame.samples += 1

    def depth(self, least_samples):
        depths = (one.depth(least_samples) for one in self.callees.values() if one.samples >= least_samples)
        return 1 + max(depths, default=0)


class Recorder:
    """Samples a process until it is stopped."""

    def __init__(self, pid, directory, name):
        self.picture = Path(directory) / f"{name}.svg"
        self.data = self.picture.with_suffix(".perf")
        self.title = name
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_S), "-g", "-p", str(pid), "-o", str(self.data)]
        self.perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def stop(self):
        """Ends the sampling and draws the picture."""
        self.perf.send_signal(signal.SIGINT)
        self.perf.wait()
        command = ["perf", "script", "-i", str(self.data), "-F", "comm,ip,sym"]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        self.data.unlink(missing_ok=True)
        self.picture.write_text(draw(fold(text), self.title))


def can_record():
    """Returns true if perf is installed."""
    return shutil.which("perf") is not None


def short(name):
    """Returns a symbol without the hash of its crate and its offset."""
    return re.sub(r"(::h[0-9a-f]{16}|\+0x[0-9a-f]+)$", "", name)


def fold(text):
    """Returns the tree of all stacks of `perf script`, outermost caller first."""
    root = Frame("all")
    for sample in text.strip().split("\n\n"):
        lines = sample.splitlines()
        if len(lines) < 2:
            continue
        stack = [short(line.split(None, 1)[1]) if len(line.split(None, 1)) > 1 else "?" for line in lines[1:]]
        # The threads of a pool are combined.
        thread = re.sub(r"-\d+$", "", lines[0].strip())
        root.add([thread, *reversed(stack)])
    return root


def colour(name):
    """Returns orange for Rust functions, by their names, and blue for others."""
    shade = sum(map(ord, name)) % 40
    if "::" in name or name.startswith("<"):
        return f"rgb({215 + shade},{140 + shade},{70 + shade // 2})"
    return f"rgb({110 + shade},{160 + shade},{215 + shade})"


def draw(root, title):
    """Returns an SVG image with the function and share of each frame as a tooltip."""
    total = max(root.samples, 1)
    least_samples = max(total / WIDTH_PX, 1)
    rows = root.depth(least_samples)
    height_px = (rows + 3) * ROW_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX + 2 * MARGIN_PX}" height="{height_px}" '
        f'font-family="monospace" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{MARGIN_PX}" y="{ROW_PX}" font-size="13">{escape(title)}: {total} samples of CPU time</text>',
    ]

    def place(frame, x_px, row):
        width_px = frame.samples / total * WIDTH_PX
        y_px = height_px - (row + 2) * ROW_PX
        tooltip = f"{escape(frame.name)} {100 * frame.samples / total:.1f} %"
        parts.append(
            f'<g><title>{tooltip}</title><rect x="{x_px:.1f}" y="{y_px}" width="{max(width_px - 0.3, 0.3):.1f}" '
            f'height="{ROW_PX - 1}" fill="{colour(frame.name)}"/>'
        )
        fits = int((width_px - 4) / CHARACTER_PX)
        if fits >= 4:
            label = frame.name if len(frame.name) <= fits else frame.name[: fits - 1] + "…"
            parts.append(f'<text x="{x_px + 2:.1f}" y="{y_px + 12}">{escape(label)}</text>')
        parts.append("</g>")
        for callee in sorted(frame.callees.values(), key=lambda one: one.name):
            if callee.samples >= least_samples:
                place(callee, x_px, row + 1)
            x_px += callee.samples / total * WIDTH_PX

    place(root, MARGIN_PX, 0)
    return "\n".join([*parts, "</svg>", ""])
