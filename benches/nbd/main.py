"""tools/bench nbd: NBD server of blockd, compared with nbdkit and qemu-nbd."""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench
import flame
import report
import servers
import workloads

EPILOG = """\
Each round runs all servers in turn, so that other load of the host affects all equally. The client is fio's
nbd engine over a unix socket, with the same random numbers for all. A pass on a new disk (or after
snapshots) ends when each block was touched once. CPU is that of the server process with all its threads, and
that of fio, per operation, without later work of kernel threads.

Goals: {best} x the best file-backed peer that runs fdatasync for a FLUSH (unlike the null plugin),
or {null} x the null plugin; {high} x the best such peer for {high_names}. With snapshots {snapshots} x without: for
reads on an allocated disk; for writes, which first allocate memory and disk space, on a fresh one and an allocated
one (both ratios are printed, and beside them the ratio of a new and an allocated file without a server).

workloads:
{workloads}
states:
{states}
servers:
  {blockd:<14}each binary of --blockd
{peers}
"""


def arguments():
    def table(pairs):
        return "\n".join(f"  {name:<14}{text}" for name, text in pairs)

    epilog = EPILOG.format(
        best=report.BEST_PEER_FACTOR,
        null=report.NULL_FACTOR,
        high=report.HIGH_FACTOR,
        high_names=", ".join(report.HIGH_WORKLOADS),
        snapshots=report.SNAPSHOT_FACTOR,
        workloads=table((one.name, one.text) for one in workloads.WORKLOADS),
        states=table(workloads.STATES.items()),
        blockd="blockd",
        peers=table((name, text) for name, (_, text) in servers.PEERS.items()),
    )
    parser = bench.arguments("nbd", "Measures the NBD servers of blockd, nbdkit and qemu-nbd alternately on one disk.", epilog)
    parser.add_argument("--quick", action="store_true", help="short passes on a small disk: 2 rounds of 1 s, 256 MiB")
    parser.add_argument("--rounds", type=int, help="passes of each kind [3]")
    parser.add_argument("--seconds", type=float, help="maximum duration of a pass [2]")
    parser.add_argument("--size", type=size, help="size of the disk, such as 512M [1G]; it should fit into memory 8 times")
    parser.add_argument("--workloads", type=names, help="names, separated by commas [all]")
    parser.add_argument("--states", type=names, help="names, separated by commas [all]")
    parser.add_argument("--servers", type=names, help="names, separated by commas [all]")
    parser.add_argument(
        "--blockd",
        action="append",
        metavar="[LABEL=]PATH",
        help="blockd binary; blockctl in the same directory; repeat to compare builds [the release build]",
    )
    parser.add_argument(
        "--flame",
        metavar="DIR",
        help="sample the servers with perf, and draw a flame graph of each kind of pass into this folder; the figures are "
        "then a little lower",
    )
    given = parser.parse_args()
    if given.flame and not flame.can_record():
        parser.error("--flame: perf is missing: apt-get install linux-perf")
    if given.flame:
        Path(given.flame).mkdir(parents=True, exist_ok=True)
    quick = given.quick
    given.rounds = given.rounds or (2 if quick else 3)
    given.seconds = given.seconds or (1 if quick else 2)
    given.size = given.size or ((256 << 20) if quick else (1 << 30))
    for what, known in (
        ("workloads", [one.name for one in workloads.WORKLOADS]),
        ("states", list(workloads.STATES)),
        ("servers", ["blockd", *servers.PEERS]),
    ):
        chosen = getattr(given, what) or known
        unknown = [name for name in chosen if name not in known]
        if unknown:
            parser.error(f"--{what}: unknown {', '.join(unknown)}; expected {', '.join(known)}")
        setattr(given, what, chosen)
    given.blockd = binaries(parser, given.blockd or [str(bench.TARGET / "blockd")])
    return given


def binaries(parser, specs):
    """label -> (blockd, blockctl)"""
    found = {}
    for spec in specs:
        label, _, path = spec.rpartition("=")
        label = f"blockd-{label}" if label else "blockd"
        path = Path(path).resolve()
        sibling = path.with_name("blockctl")
        blockctl = sibling if sibling.exists() else bench.TARGET / "blockctl"
        for binary in (path, blockctl):
            if not os.access(binary, os.X_OK):
                parser.error(f"{binary} is missing: cargo build --release -p blockd -p blockctl")
        if label in found:
            parser.error(f"--blockd: two binaries are called {label}; give one as NAME={path}")
        found[label] = (path, blockctl)
    return found


def names(text):
    return [name for name in text.split(",") if name]


def size(text):
    units = {"K": 10, "M": 20, "G": 30}
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, None)
    if not digits.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a size: expected a number and K, M or G")
    value = int(digits) << units.get(unit, 0)
    if value < 64 << 20 or value % (4 << 20):
        raise argparse.ArgumentTypeError("at least 64M, and a multiple of 4M")
    return value


def make_servers(given, directory):
    """Starts the permanent servers; started ones are in the list even if a later one fails."""
    made = []
    try:
        for name in given.servers:
            if name == "blockd":
                for label, (blockd, blockctl) in given.blockd.items():
                    made.append(servers.Blockd(label, directory, given.size, blockd, blockctl))
            else:
                made.append(servers.PEERS[name][0](name, directory, given.size))
    except BaseException:
        stop_all(made)
        raise
    return made


def stop_all(running):
    for server in running:
        server.stop()


def one_pass(server, workload, state, given):
    uri = server.prepare(state)
    try:
        workloads.settle()
        if workloads.touches_once(workload, state):
            workloads.warm_memory(given.size)
        before = server.cpu_us()
        recorder = None
        if given.flame and server.process:
            recorder = flame.Recorder(server.process.pid, given.flame, f"{workload.name}-{state}-{server.label}")
        try:
            with server.during_pass(state) as more:
                figures = workloads.measure(uri, workload, state, given.size, given.seconds)
            figures.update(more)
        finally:
            if recorder:
                recorder.stop()
        figures["server_cpu_us_per_op"] = (server.cpu_us() - before) / figures["operations"]
    finally:
        server.release(state)
    return figures


def run(given, running, passes):
    chosen = [one for one in workloads.WORKLOADS if one.name in given.workloads]
    plan = [(workload, state) for workload in chosen for state in workloads.STATES if state in given.states and workloads.applies(workload, state)]
    for number, (workload, state) in enumerate(plan):
        taking_part = [server for server in running if state in server.states]
        if not taking_part:
            continue
        for round_number in range(given.rounds):
            # Each round starts with another server, so that none always follows the same one.
            first = round_number % len(taking_part)
            for server in taking_part[first:] + taking_part[:first]:
                where = f"[{number + 1}/{len(plan)}] {workload.name}, {state}, round {round_number + 1}, {server.label}"
                print(f"\r\033[K{where}" if sys.stderr.isatty() else where, end="", file=sys.stderr, flush=True)
                figures = one_pass(server, workload, state, given)
                key = {"workload": workload.name, "state": state, "server": server.label, "round": round_number + 1}
                passes.append({**key, **figures})
                unit = f"{figures['mib_per_s']:,.0f} MiB/s" if workload.in_mib else f"{figures['iops']:,.0f} IOPS"
                stack = f", {figures['layers']} layers with {figures['allocated_bytes'] >> 20} MiB" if "layers" in figures else ""
                end = "" if sys.stderr.isatty() else f": {unit}, {figures['server_cpu_us_per_op']:.1f} us/op{stack}\n"
                print(end, end="", file=sys.stderr, flush=True)
    print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)


def version(*command):
    try:
        text = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return text.splitlines()[0] if text else "unknown"
    except OSError:
        return "unknown"


def about(given, directory):
    filesystem = version("findmnt", "-no", "FSTYPE,SOURCE", "-T", str(directory))
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "filesystem": filesystem,
        "fio": version("fio", "--version"),
        "nbdkit": version("nbdkit", "--version"),
        "qemu-nbd": version("qemu-nbd", "--version"),
        "blockd": {label: version(str(paths[0]), "--version") for label, paths in given.blockd.items()},
        "rounds": given.rounds,
        "seconds": given.seconds,
        "size_bytes": given.size,
        "load_average_at_start": os.getloadavg()[0],
    }


def write_json(given, environment, running, passes, table, found):
    document = {
        "about": environment,
        "servers": [
            {
                "server": server.label,
                "file_backed": server.is_file_backed,
                "flush_is_durable": server.flush_is_durable,
                "survives_kill": server.survives_kill,
            }
            for server in running
        ],
        "medians": [
            {"workload": workload, "state": state, "server": server, **figures}
            for (workload, state, server), figures in table.items()
        ],
        "goals": found,
        "passes": passes,
    }
    bench.write_figures(given, "nbd", document)


def main():
    given = arguments()
    missing = servers.missing_packages()
    if missing:
        sys.exit(f"bench: these Debian packages are missing: apt-get install {' '.join(missing)}")
    # Like Ctrl-C: stops the servers, deletes the files and prints the results so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running, passes = [], []
    interrupted = False
    with bench.directory(given.dir) as directory:
        try:
            environment = about(given, directory)
            if environment["filesystem"].split()[:1] in (["tmpfs"], ["overlay"]):
                print(f"bench: {directory} is on {environment['filesystem']}: this measures no disk", file=sys.stderr)
            running = make_servers(given, directory)
            print(", ".join(f"{name}: {value}" for name, value in environment.items() if name != "blockd"))
            report.print_durability(running)
            try:
                run(given, running, passes)
            except KeyboardInterrupt:
                interrupted = True
                print("\ninterrupted; results so far:", file=sys.stderr)
        except (bench.Failed, workloads.FioFailed, subprocess.CalledProcessError) as error:
            sys.exit(f"bench: {error}")
        finally:
            stop_all(running)
    table = report.medians(passes)
    subjects = [server.label for server in running if server.label in given.blockd]
    found = report.goals(table, running, subjects[0]) if subjects else []
    report.print_medians(table, running)
    report.print_goals(found)
    write_json(given, environment, running, passes, table, found)
    if interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main()
