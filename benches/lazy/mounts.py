"""Other tools that mount an image in a bucket, each in its own format."""

import os
import shutil
import subprocess
import time

import looks

PASSWORD = "bench"


def run(*parts, env=None, **more):
    command = [str(part) for part in parts]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, **more)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-400:]}")


class Mount:
    """Stores an image through the proxy, and mounts it in the foreground without a cache."""

    name = program = ""
    pattern = ""
    needs_directory = False

    def __init__(self, dir, store, port):
        self.dir, self.store, self.port = dir / self.name.replace(" ", "-"), store, port
        self.dir.mkdir()
        self.endpoint = f"http://127.0.0.1:{port}"

    @classmethod
    def is_there(cls):
        return shutil.which(cls.program) is not None

    def environment(self):
        return dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self.store.keys))

    def fill(self, image):
        raise NotImplementedError

    def command(self, at):
        raise NotImplementedError

    def forget(self):
        """Deletes the cache."""

    def mount(self, at):
        self.forget()
        command = [str(part) for part in self.command(at)]
        log = open(self.dir / "log", "ab")
        child = subprocess.Popen(command, env={**os.environ, **self.environment()}, stdout=log, stderr=log)

        def umount():
            for _ in range(100):
                if subprocess.run(["fusermount3", "-u", str(at)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.05)
            child.wait()

        return umount

    def measure(self, offsets, length, most_s):
        return looks.look(self.name, self.dir / "mnt", self.mount, self.pattern, offsets, length, most_s)


class Restic(Mount):
    name, program, pattern = "restic mount", "restic", "snapshots/*-*/image"

    def environment(self):
        where = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(self.dir / "cache"), "RESTIC_PROGRESS_FPS": "0.1"}
        return {**super().environment(), **where, "RESTIC_REPOSITORY": f"s3:{self.endpoint}/{self.store.bucket}/restic"}

    def fill(self, image):
        run("restic", "-q", "init", env=self.environment())
        run("restic", "-q", "backup", image.name, env=self.environment(), cwd=image.parent)

    def forget(self):
        shutil.rmtree(self.dir / "cache", ignore_errors=True)

    def command(self, at):
        return ["restic", "-q", "mount", at]


class Rclone(Mount):
    name, program, pattern = "rclone mount", "rclone", "image"

    def environment(self):
        # rclone fails on this file, and the connection has no TLS.
        return {**super().environment(), "AWS_CA_BUNDLE": ""}

    def options(self):
        access, secret = self.store.keys
        keys = [f"--s3-access-key-id={access}", f"--s3-secret-access-key={secret}"]
        return ["--config", "", "--s3-provider", "Other", "--s3-endpoint", self.endpoint, "--s3-no-check-bucket", *keys]

    def fill(self, image):
        run("rclone", "copyto", *self.options(), image, f":s3:{self.store.bucket}/rclone/image", env=self.environment())

    def command(self, at):
        return ["rclone", "mount", *self.options(), "--read-only", f":s3:{self.store.bucket}/rclone", at]


class S3backer(Mount):
    name, program, pattern = "s3backer", "s3backer", "file"

    def common(self, length):
        access, secret = self.store.keys
        return ["-f", f"--accessId={access}", f"--accessKey={secret}", f"--baseURL={self.endpoint}/",
                "--blockSize=128k", f"--size={length}", "--prefix=s3backer/", "--minWriteDelay=0"]

    def fill(self, image):
        self.length = image.stat().st_size
        at = self.dir / "fill"
        at.mkdir()
        log = open(self.dir / "log", "ab")
        command = ["s3backer", *self.common(self.length), self.store.bucket, str(at)]
        child = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            target = looks.wait_for(at, "file", 30)
            run("dd", f"if={image}", f"of={target}", "bs=1M", "conv=notrunc,fsync,sparse", "status=none")
        finally:
            subprocess.run(["fusermount3", "-u", str(at)], capture_output=True)
            child.terminate()
            child.wait()
        at.rmdir()

    def command(self, at):
        return ["s3backer", *self.common(self.length), "--readOnly", self.store.bucket, at]


class Borg(Mount):
    """Stores only to directories and over SSH: measured without a delay."""

    name, program, pattern = "borg mount", "borg", "image"
    needs_directory = True

    def environment(self):
        return {"BORG_BASE_DIR": str(self.dir / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def fill(self, image):
        env = self.environment()
        run("borg", "init", "-e", "none", self.dir / "repository", env=env)
        archive = f"{self.dir / 'repository'}::1"
        run("borg", "create", "--chunker-params", "fixed,4194304", "-C", "lz4", archive, image.name, env=env, cwd=image.parent)

    def command(self, at):
        return ["borg", "mount", "-f", f"{self.dir / 'repository'}::1", at]


ALL = (Restic, Borg, Rclone, S3backer)
