"""Stored bytes as backups follow each other: daily increments with their retention, and clones of one image."""

import os
import random
import shutil

import bench
import data
import peers
import places
import report
import subject

MIB = 1 << 20
EXTENT = 32 << 10
BLOCK = 4 << 10
# The default of the daemon: each seventh increment is a full backup.
CYCLE = 7
KEPT = 7
CLONES = 10
# Share of the data of an image that differs in a clone.
SHARE = 0.05


class Churn:
    """Daily changes of an image: half of the extents are new (three quarters on the first day, without former content), a quarter is former content
    at another place, a quarter is copied to another place."""

    def __init__(self, image, share):
        self.image, self.noise = image, random.Random(7)
        self.extents = os.path.getsize(image) // EXTENT
        self.count = int(self.extents * share)
        self.former = []

    def old_at(self, number):
        with open(self.image, "rb") as image:
            return os.pread(image.fileno(), EXTENT, number * EXTENT)

    def next(self):
        """Changes the image; returns the (offset, bytes) of a day and the number of new bytes."""
        changes, fresh, noise = {}, 0, self.noise
        for number in noise.sample(range(self.extents), self.count):
            kind = noise.randrange(4)
            if kind < 2 or not self.former:
                changes[number] = noise.randbytes(EXTENT)
                fresh += EXTENT
            elif kind == 2:
                changes[number] = noise.choice(self.former)
            else:
                changes[number] = self.old_at(noise.randrange(self.extents))
        self.former += [self.old_at(number) for number in changes]
        with open(self.image, "r+b") as image:
            for number, content in changes.items():
                os.pwrite(image.fileno(), content, number * EXTENT)
        return [(number * EXTENT, content) for number, content in sorted(changes.items())], fresh


def differ(clone, content, noise):
    """Writes content into a clone, in extents of 1 to 16 blocks at random places with data."""
    with open(clone, "r+b") as file:
        blocks, at = os.path.getsize(clone) // BLOCK, 0
        while at < len(content):
            part = content[at : at + noise.randint(1, 16) * BLOCK]
            offset = noise.randrange(blocks - 16) * BLOCK
            if any(os.pread(file.fileno(), len(part), offset)):
                os.pwrite(file.fileno(), part, offset)
                at += len(part)


class Growth:
    def __init__(self, given, directory):
        self.place = places.Local(directory)
        size = (given.data * 23 // 20 // MIB + 32) * MIB
        self.image, _ = data.make_image(directory, size, given.data)
        self.size, self.directory = size, directory
        missing = [] if given.no_install else peers.install([peers.Restic])
        self.restic = None if missing or not peers.Restic.is_there() else peers.Restic(self.place, directory)
        if self.restic:
            self.restic.begin()
        self.blockd = subject.Blockd(given.blockd or bench.build_blockd(), directory)
        self.blockd.make_credential("store", self.place, True)

    def stored(self):
        os.sync()
        return data.allocated(self.place.directory / "store")

    def of_restic(self, image):
        """Backs up an image; returns the time and the stored bytes."""
        if not self.restic:
            return None, None
        took = self.restic.backup(image)
        os.sync()
        return took["seconds"], self.restic.stored()

    def clones(self):
        """Returns the stored bytes after each clone."""
        found, noise = [], random.Random(3)
        each = int(data.allocated(self.image) * SHARE) // BLOCK * BLOCK
        other = data.last_files(each * (CLONES - 1))
        for number in range(CLONES):
            clone = self.directory / f"clone-{number}"
            shutil.copyfile(self.image, clone)
            if number:
                differ(clone, other[(number - 1) * each : number * each], noise)
            self.blockd.make_volume(f"clone{number}", self.size, clone)
            took = self.blockd.backup(f"clone{number}", "store")
            theirs, their_stored = self.of_restic(clone)
            found.append({"seconds": took["seconds"], "uploaded": took["stored_bytes"], "stored": self.stored(),
                          "restic_seconds": theirs, "restic_stored": their_stored})
            clone.unlink()
        return found

    def days(self, count, share):
        """Returns the measurements of each day, and the stored bytes after all but the last backups are deleted."""
        self.blockd.make_volume("vm", self.size, self.image)
        churn, found, snaps = Churn(self.image, share), [], []
        for day in range(count + 1):
            changes, fresh = churn.next() if day else ([], 0)
            if day:
                self.blockd.write("vm", changes)
            took = self.blockd.backup("vm", "store")
            snaps.append(took["snap"])
            theirs, their_stored = self.of_restic(self.image)
            found.append({"day": day, "changed": len(changes) * EXTENT, "fresh": fresh, "seconds": took["seconds"],
                          "uploaded": took["stored_bytes"], "stored": self.stored(), "restic_seconds": theirs,
                          "restic_stored": their_stored})
        self.blockd.restore(snaps[-1], "store", "restored")
        self.compare()
        for snap in snaps[:-KEPT]:
            self.blockd.ctl("cloudsnap", "delete", snap, "--cred-id", "store", "--yes", "--wait")
        left = {"stored": self.stored(), "restic_stored": None}
        if self.restic:
            self.restic.run("forget", "--keep-last", KEPT, "--prune")
            os.sync()
            left["restic_stored"] = self.restic.stored()
        return found, left

    def compare(self):
        with open(self.image, "rb") as image, bench.Nbd(self.blockd.dir / "nbd.sock", "restored") as client:
            for offset in range(0, self.size, MIB):
                if image.read(MIB) != bytes(client.read(offset, MIB)):
                    raise bench.Failed(f"wrong content restored at {offset}")


def met_at_most(what, value, limit):
    return (what, value, f"<= {limit:g} x", value <= limit)


def of_days(growth, given):
    found, left = growth.days(given.days, 0.02)
    print(f"\n{given.days} increments with 2 % of {growth.size / MIB:.0f} MiB changed: MiB")
    print(f"{'day':>4}{'changed':>9}{'new':>7}{'uploaded':>10}{'stored':>9}{'seconds':>9}{'restic stored':>15}{'seconds':>9}")
    for one in found:
        theirs = "-" if one["restic_stored"] is None else f"{one['restic_stored'] / MIB:.1f}"
        seconds = "-" if one["restic_seconds"] is None else f"{one['restic_seconds']:.2f}"
        print(f"{one['day']:4}{one['changed'] / MIB:9.1f}{one['fresh'] / MIB:7.1f}{one['uploaded'] / MIB:10.1f}"
              f"{one['stored'] / MIB:9.1f}{one['seconds']:9.2f}{theirs:>15}{seconds:>9}")
    goals = []
    full = [one for one in found if one["day"] % CYCLE == 0 and one["day"]]
    for one in full[:1]:
        goals.append(met_at_most(f"uploaded by full backup {one['day']} / its changes", one["uploaded"] / one["changed"], 1.05))
        goals.append(met_at_most("... / its new bytes", one["uploaded"] / one["fresh"], 1.05))
    if left["restic_stored"]:
        last = found[-1]
        goals.append(met_at_most(f"stored of all {len(found)} / restic's", last["stored"] / last["restic_stored"], 0.8))
        print(f"the last {KEPT} kept: {left['stored'] / MIB:.1f}, restic {left['restic_stored'] / MIB:.1f} after its prune")
        goals.append(met_at_most(f"stored of the last {KEPT} / restic's after prune", left["stored"] / left["restic_stored"], 0.8))
    return {"days": found, "kept": left}, goals


def of_clones(growth):
    found = growth.clones()
    print(f"\n{CLONES} clones of {growth.size / MIB:.0f} MiB with 5 % difference: MiB")
    print(f"{'clone':>6}{'uploaded':>10}{'stored':>9}{'seconds':>9}{'restic stored':>15}{'seconds':>9}")
    for number, one in enumerate(found):
        theirs = "-" if one["restic_stored"] is None else f"{one['restic_stored'] / MIB:.1f}"
        seconds = "-" if one["restic_seconds"] is None else f"{one['restic_seconds']:.2f}"
        print(f"{number:6}{one['uploaded'] / MIB:10.1f}{one['stored'] / MIB:9.1f}{one['seconds']:9.2f}{theirs:>15}{seconds:>9}")
    goal = met_at_most(f"stored of {CLONES} clones / one", found[-1]["stored"] / found[0]["stored"], 1.6)
    return {"clones": found}, [goal]


def run(given):
    """Measures `given.growth`; prints table and goals, and returns the document."""
    with bench.directory(given.dir) as directory:
        growth = None
        try:
            growth = Growth(given, directory)
            document, goals = of_days(growth, given) if given.growth == "days" else of_clones(growth)
        finally:
            if growth:
                growth.blockd.stop()
    report.print_goals(goals)
    return {**document, "data_bytes": given.data, "goals": [dict(zip(("what", "value", "goal", "met"), one)) for one in goals]}
