"""Other tools, which back up the image of the device."""

import shutil
import subprocess

import data
import measure

PASSWORD = "bench"


def measured(parts, into=None, **more):
    """Runs a command; `into` is a sparse file for its output."""
    if into is None:
        return measure.command(*parts, **more)
    script = 'into=$1; shift; set -o pipefail; "$@" | dd of="$into" bs=1M conv=sparse iflag=fullblock status=none'
    return measure.command("bash", "-c", script, "bash", into, *parts, **more)


class Peer:
    """One tool with one backup location. Each step returns its measurements."""

    name = ""
    package = ""
    program = ""
    # A second run stores only changes.
    is_incremental = True

    def __init__(self, place, directory):
        self.place, self.directory = place, directory / f"{self.name}-{place.name}"

    @classmethod
    def is_there(cls):
        return shutil.which(cls.program) is not None

    @property
    def label(self):
        return self.name

    def begin(self):
        """Prepares the location; not measured."""
        self.directory.mkdir()

    def backup(self, image):
        raise NotImplementedError

    def restore(self, target):
        raise NotImplementedError

    def stored(self):
        """Returns the number of stored bytes."""
        return data.allocated(self.directory)

    def end(self):
        shutil.rmtree(self.directory, ignore_errors=True)


class Restic(Peer):
    name, package, program = "restic", "restic", "restic"

    def env(self):
        found = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(self.directory / "cache"), "RESTIC_PROGRESS_FPS": "0.1"}
        return {**found, **self.place.env()}

    def run(self, *parts, **more):
        where = self.place.url("restic") or str(self.directory / "repository")
        prefix = "s3:" if self.place.url("restic") else ""
        return measured(["restic", "-q", "-r", prefix + where, *parts], env=self.env(), **more)

    def begin(self):
        super().begin()
        self.run("init")

    def backup(self, image):
        return self.run("backup", image.name, cwd=image.parent)

    def restore(self, target):
        return self.run("dump", "latest", "/image", into=target)

    def stored(self):
        where = self.place.url("restic")
        return self.place.stored("restic") if where else data.allocated(self.directory / "repository")


class Borg(Peer):
    """Fixed-size chunks, as its manual recommends for disk images; zstd; no encryption."""

    name, package, program = "borg", "borgbackup", "borg"

    def __init__(self, place, directory):
        super().__init__(place, directory)
        self.count = 0

    def run(self, *parts, **more):
        env = {"BORG_BASE_DIR": str(self.directory / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        return measured(["borg", *parts], env=env, **more)

    def begin(self):
        super().begin()
        self.run("init", "-e", "none", self.directory / "repository")

    def backup(self, image):
        self.count += 1
        archive = f"{self.directory / 'repository'}::{self.count}"
        return self.run("create", "--chunker-params", "fixed,4194304", "-C", "zstd", archive, image.name, cwd=image.parent)

    def restore(self, target):
        archive = f"{self.directory / 'repository'}::{self.count}"
        return self.run("extract", "--stdout", archive, "image", into=target)

    def stored(self):
        return data.allocated(self.directory / "repository")


class QemuImg(Peer):
    name, package, program = "qemu-img", "qemu-utils", "qemu-img"
    is_incremental = False

    def backup(self, image):
        target = self.directory / "image.qcow2"
        options = ["-W", "-m", "8", "-c", "-o", "compression_type=zstd"]
        return measure.command("qemu-img", "convert", "-O", "qcow2", *options, image, target)

    def restore(self, target):
        return measure.command("qemu-img", "convert", "-O", "raw", self.directory / "image.qcow2", target)


class Cp(Peer):
    """Baseline without compression, encryption and deduplication."""

    name, package, program = "cp", "coreutils", "cp"
    is_incremental = False

    def backup(self, image):
        return measure.command("cp", "--sparse=auto", image, self.directory / "image")

    def restore(self, target):
        return measure.command("cp", "--sparse=auto", self.directory / "image", target)

    def stored(self):
        return data.allocated(self.directory / "image")


class Rclone(Peer):
    """Baseline of a bucket: the data of the image in one object."""

    name, package, program = "rclone", "rclone", "rclone"
    is_incremental = False

    def options(self):
        access, secret = self.place.keys
        return ["--config", "", "--s3-provider", "Other", "--s3-endpoint", self.place.endpoint, "--s3-no-check-bucket"] + [
            f"--s3-access-key-id={access}",
            f"--s3-secret-access-key={secret}",
        ]

    def backup(self, image):
        return self.copy(image.with_name("packed"), f":s3:{self.place.bucket}/rclone/packed")

    def restore(self, target):
        return self.copy(f":s3:{self.place.bucket}/rclone/packed", target)

    def copy(self, source, target):
        # rclone fails on this file, and the connection has no TLS.
        return measure.command("rclone", "copyto", *self.options(), source, target, env={"AWS_CA_BUNDLE": ""})

    def stored(self):
        return self.place.stored("rclone")


LOCAL = (Restic, Borg, QemuImg, Cp)
S3 = (Restic, Rclone)


def install(classes):
    """Installs missing tools if possible; returns the names of those still missing."""
    missing = {peer for peer in classes if not peer.is_there()}
    if missing:
        packages = sorted({peer.package for peer in missing})
        command = ["apt-get", "install", "-y", "-q", *packages]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pass
    return sorted({peer.name for peer in missing if not peer.is_there()})
