"""A store that is far away: a proxy that holds each request back."""

import subprocess


class Proxy:
    """Runs the program `delay_proxy`, which costs little beside what is measured."""

    def __init__(self, program, target_port):
        self.child = subprocess.Popen(
            [str(program), str(target_port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.port = int(self.child.stdout.readline())

    def delay(self, ms):
        self.child.stdin.write(f"delay {ms}\n")

    @property
    def requests(self):
        """How many went by so far."""
        self.child.stdin.write("count\n")
        return int(self.child.stdout.readline())

    def stop(self):
        self.child.stdin.close()
        self.child.wait()
