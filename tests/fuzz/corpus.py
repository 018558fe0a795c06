"""Inputs of a fuzz target in one file, `name hex` a line: `corpus.py unpack|update|add TARGET PATH`."""

import pathlib
import re
import sys

INPUTS_MAX = 20
# libFuzzer names an input after its SHA-1; other names mark inputs that broke a target or were made by hand.
FOUND = re.compile(r"[0-9a-f]{40}")


def unpack(packed, directory):
    directory.mkdir(parents=True, exist_ok=True)
    for line in packed.read_text().splitlines():
        name, _, content = line.partition(" ")
        (directory / name).write_bytes(bytes.fromhex(content))


def add(packed, file):
    with packed.open("a") as lines:
        lines.write(f"{file.name} {file.read_bytes().hex()}\n")


def features(control):
    """Returns the features that each input covers, from the control file of libFuzzer's merge."""
    lines = control.read_text().splitlines()
    paths = [pathlib.Path(line) for line in lines[2 : 2 + int(lines[0])]]
    covered = {}
    for line in lines[2 + len(paths) :]:
        kind, index, *rest = line.split()
        if kind == "FT":
            covered[paths[int(index)]] = set(rest)
    return covered


def update(packed, directory):
    """Keeps the named inputs and adds those that cover the most beside them."""
    covered = features(directory / "merge.control")
    kept = {path for path in covered if not FOUND.fullmatch(path.name)}
    seen = set().union(*(covered[path] for path in kept))
    while len(kept) < INPUTS_MAX:
        best = max(sorted(covered), key=lambda path: len(covered[path] - seen))
        if covered[best] <= seen:
            break
        kept.add(best)
        seen |= covered[best]
    lines = [f"{path.name} {path.read_bytes().hex()}\n" for path in sorted(kept, key=lambda path: path.name)]
    packed.write_text("".join(lines))


command, target, path = sys.argv[1:]
packed = pathlib.Path(__file__).parent / "corpus" / f"{target}.hex"
source = pathlib.Path(__file__).parent / "fuzz_targets" / f"{target}.rs"
if not source.is_file():
    sys.exit(f"corpus.py: no target {target}: {source} does not exist")
packed.touch()
{"unpack": unpack, "update": update, "add": add}[command](packed, pathlib.Path(path))
