#!/usr/bin/env python3
"""Runs the test programs of a build: run_programs.py MESSAGES [ARGUMENT…]

MESSAGES is the output of `cargo test --no-run --message-format=json`; the arguments are passed to every program. Each
program runs in the directory of its package, as cargo does it. Most of them wait for disks and timers, so there is one
more at a time than cores. The output of a program is printed when it ends. The end-to-end tests are not run here.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

END_TO_END = "end_to_end"


def programs(messages):
    """Returns name, directory and path of each program; the largest, which take the longest, first."""
    found = []
    for line in messages:
        message = json.loads(line)
        if message.get("executable") and message["profile"]["test"] and message["target"]["name"] != END_TO_END:
            directory = os.path.dirname(message["manifest_path"])
            found.append((message["target"]["name"], directory, message["executable"]))
    return sorted(found, key=lambda one: -os.path.getsize(one[2]))


def run(program, arguments):
    """Runs a program; returns its heading, output and status."""
    name, directory, path = program
    done = subprocess.run(
        [path, *arguments], cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return f"{name} in {os.path.relpath(directory)}", done.stdout, done.returncode


def main():
    with pathlib.Path(sys.argv[1]).open() as messages:
        found = programs(messages)
    if not found:
        sys.exit("run_programs.py: no test program was built")
    failed = []
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        running = [pool.submit(run, program, sys.argv[2:]) for program in found]
        for done in concurrent.futures.as_completed(running):
            heading, output, status = done.result()
            print(f"     Running {heading}", flush=True)
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()
            if status:
                failed.append(f"{heading} (status {status})")
    if failed:
        sys.exit("failed: " + ", ".join(failed))


main()
