"""Proxy that delays each request to a store."""

import subprocess


class Proxy:
    """Runs the program `delay_proxy`."""

    def __init__(self, program, target_port):
        self.child = subprocess.Popen(
            [str(program), str(target_port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.port = int(self.child.stdout.readline())

    def delay(self, ms):
        self.child.stdin.write(f"delay {ms}\n")

    @property
    def requests(self):
        """Number of forwarded requests."""
        self.child.stdin.write("count\n")
        return int(self.child.stdout.readline())

    def stop(self):
        self.child.stdin.close()
        self.child.wait()
