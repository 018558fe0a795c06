"""Backup locations: a directory, and a bucket of SeaweedFS."""

import json
import shutil
import socket
import urllib.request

import bench
import data

class Local:
    """A directory on the same disk as the image."""

    name = "local"

    def __init__(self, directory):
        self.directory = directory / "local"
        self.directory.mkdir()

    def env(self):
        return {}

    def url(self, _folder):
        return None

    def credential(self, label):
        path = self.directory / label
        path.mkdir()
        return ["--provider", "local", "--path", path]

    def stop(self):
        pass


def free_ports():
    """Returns a port that is free, like the port 10000 above it, which the server uses as well."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 50_000:
                with socket.socket() as second:
                    try:
                        second.bind(("127.0.0.1", port + 10_000))
                        return port
                    except OSError:
                        continue


class S3:
    """Bucket of a SeaweedFS on this host, whose CPU time is not counted."""

    name = "s3"
    bucket = "bkt"
    keys = ("bench", "benchbench")

    def __init__(self, directory, weed):
        self.directory = directory / "weed"
        self.directory.mkdir()
        port = free_ports()
        self.endpoint = f"http://127.0.0.1:{port}"
        identity = {"name": "a", "credentials": [dict(zip(("accessKey", "secretKey"), self.keys))], "actions": ["Admin"]}
        config = directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        command = [weed, "mini", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        command += [f"-s3.port={port}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-admin.ui=false", "-webdav=false", f"-bucket={self.bucket}"]
        self.process = bench.Process(command, directory / "weed.log")
        self.process.wait_until(lambda: urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2).status == 200)

    def env(self):
        return dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self.keys))

    def url(self, folder):
        return f"{self.endpoint}/{self.bucket}/{folder}"

    def stored(self, _folder):
        """Returns the allocated bytes of the files of the server, for all tools."""
        return data.allocated(self.directory)

    def credential(self, _label):
        access, secret = self.keys
        address = self.endpoint.removeprefix("http://")
        options = ["--provider", "s3", "--s3-endpoint", address, "--s3-region", "us-east-1", "--bucket", self.bucket]
        return [*options, "--s3-access-key", access, "--s3-secret-key", secret, "--s3-disable-ssl"]

    def stop(self):
        self.process.stop()


def find_weed(given):
    own = bench.ROOT / "target/venv/bin/weed"
    return given or (str(own) if own.is_file() else shutil.which("weed"))
