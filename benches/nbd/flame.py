"""Flame graphs of a server's passes: where its CPU time went, as a picture that any browser shows.

`perf record` samples the process while fio loads it. The samples' stacks are put on top of each other, callers below, as wide
as their share of the samples; what is narrower than a pixel is left out.
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
    """Whether perf is there."""
    return shutil.which("perf") is not None


def short(name):
    """A symbol without its crate's hash and its offsets."""
    return re.sub(r"(::h[0-9a-f]{16}|\+0x[0-9a-f]+)$", "", name)


def fold(text):
    """All stacks of `perf script`, outermost caller first, below one root."""
    root = Frame("all")
    for sample in text.strip().split("\n\n"):
        lines = sample.splitlines()
        if len(lines) < 2:
            continue
        stack = [short(line.split(None, 1)[1]) if len(line.split(None, 1)) > 1 else "?" for line in lines[1:]]
        # The threads of a pool are one.
        thread = re.sub(r"-\d+$", "", lines[0].strip())
        root.add([thread, *reversed(stack)])
    return root


def colour(name):
    """The kernel's functions are blue, ours are orange: by what Rust's names look like."""
    shade = sum(map(ord, name)) % 40
    if "::" in name or name.startswith("<"):
        return f"rgb({215 + shade},{140 + shade},{70 + shade // 2})"
    return f"rgb({110 + shade},{160 + shade},{215 + shade})"


def draw(root, title):
    """An SVG picture; a rectangle says its function and share when the mouse is on it."""
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
        said = f"{escape(frame.name)} {100 * frame.samples / total:.1f} %"
        parts.append(
            f'<g><title>{said}</title><rect x="{x_px:.1f}" y="{y_px}" width="{max(width_px - 0.3, 0.3):.1f}" '
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
