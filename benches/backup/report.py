"""Tables and goals."""

import data

MIB = 1 << 20


def table(title, rows, limit=None):
    print(f"\n{title}")
    print(f"{'':24}{'seconds':>9}{'CPU s':>8}{'stored MiB':>12}{'requests':>10}{'peak MiB':>10}")
    for label, took in rows:
        stored = took.get("stored_bytes")
        stored = "-" if stored is None else f"{stored / MIB:.1f}"
        print(
            f"{label:24}{took['seconds']:9.2f}{took['cpu_seconds']:8.2f}{stored:>12}"
            f"{took.get('requests', '-'):>10}{took['peak_mib']:10.0f}"
        )
    if limit:
        print(f"{'(zstd:4 + AES-GCM-SIV alone)':24}{limit:9.2f}")


def goals(steps, limit_seconds):
    """Returns (name, value, goal, met) of all measured goals."""

    def seconds(step, tool, place):
        took = steps.get((step, tool, place))
        return took and took["seconds"]

    def ratio_of_stored(tool, place):
        ours, theirs = steps.get(("full", tool, place)), steps.get(("full", "restic", place))
        return ours and theirs and ours["stored_bytes"] / theirs["stored_bytes"]

    found = []

    def at_least(what, ours, theirs, factor):
        if ours and theirs:
            found.append((what, theirs / ours, f">= {factor:g} x", theirs / ours >= factor))

    def at_most(what, value, limit, unit=""):
        if value is not None:
            found.append((what, value, f"<= {limit:g}{unit}", value <= limit))

    for place in ("local", "s3"):
        ours = seconds("full", "encrypted", place)
        for tool in ("encrypted", "zstd-6"):
            what = f"full, {tool}, {place}"
            at_least(f"{what}: restic's time / ours", seconds("full", tool, place), seconds("full", "restic", place), 5)
            at_most(f"{what}: stored / restic's", ratio_of_stored(tool, place), 0.95, " x")
        if ours and limit_seconds:
            found.append((f"full, {place}: share of zstd:4 + AES-GCM-SIV", limit_seconds / ours, ">= 0.7", limit_seconds / ours >= 0.7))
        for peer in ("restic", "borg"):
            at_least(f"incremental, {place}: {peer}'s time / ours", seconds("incremental", "encrypted", place),
                     seconds("incremental", peer, place), 30)
        at_least(f"restore, {place}: restic's time / ours", seconds("restore", "encrypted", place),
                 seconds("restore", "restic", place), 4)
        incremental = steps.get(("incremental", "encrypted", place))
        if incremental:
            at_most(f"incremental, {place}: stored / dirty bytes", incremental["stored_bytes"] / data.DIRTY_BYTES, 1.05)
        without = seconds("full", "not-deduplicated", place)
        if ours and without:
            at_most(f"full, {place}: time with / without deduplication", ours / without, 1.25, " x")
        for step in ("full", "incremental"):
            took = steps.get((step, "encrypted", place))
            if took:
                packs = took["puts"] - 2
                at_most(f"{step}, {place}: requests beyond its {packs} packs", took["requests"] - packs, 3)
    for step in ("full", "incremental"):
        large, small = seconds(step, "16-TiB", "local"), seconds(step, "encrypted", "local")
        if large and small:
            at_most(f"{step}: 16 TiB volume / 8 GiB volume", large / small, 1.1)
    ours = [took["peak_mib"] for (_, tool, _), took in steps.items() if tool in ("encrypted", "not-deduplicated", "zstd-6", "plain", "16-TiB")]
    if ours:
        at_most("peak memory of the daemon", max(ours), 256, " MiB")
    return found


def print_goals(found):
    print("\ngoals")
    for what, value, goal, met in found:
        print(f"  {what:46}{value:8.2f}   {goal:10}{'met' if met else 'NOT MET'}")


def print_guest(guest):
    print("\n4k randwrite on the volume, depth 1: p99 in us")
    print(f"  without a backup {guest['alone_us']:.0f}, during backups {guest['beside_us']:.0f}: ", end="")
    ratio = guest["beside_us"] / guest["alone_us"]
    print(f"{ratio:.2f} x (goal <= 1.5: {'met' if ratio <= 1.5 else 'NOT MET'})")
