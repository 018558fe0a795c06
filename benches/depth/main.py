"""tools/bench depth-nbd: random reads over NBD of a volume with many layers, compared with a single layer."""

import json
import statistics
import subprocess

import bench
from bench import MIB

GOAL = 0.95

EPILOG = """\
All volumes are written completely, in as many rounds as there are layers: SCATTERED writes adjacent blocks in different rounds,
RUNS writes 64 adjacent blocks in one round. Deep volumes get a snapshot after each round, the others none, so that the same
data of both is in the page cache. Then fio reads 4 KiB at random from all volumes in turns over NBD, each after one sequential
read. Goal: 0.95 of the rate of a single layer.
"""


def arguments():
    parser = bench.arguments("depth-nbd", __doc__, EPILOG)
    parser.add_argument("--layers", type=int, default=64, help="layers of the deep volume [64]")
    parser.add_argument("--mib", type=int, default=512, help="size of each volume [512]")
    parser.add_argument("--seconds", type=int, default=4, help="duration of each pass [4]")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each kind; medians are printed [5]")
    parser.add_argument("--blockd", help="blockd binary; blockctl in the same directory [the release build]")
    return parser.parse_args()


class Daemon(bench.Blockd):
    def fio(self, volume, *options):
        command = ["fio", "--name=depth", "--ioengine=nbd", f"--uri={self.uri(volume)}", "--output-format=json", *options]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]


def make(daemon, name, given, run_blocks, is_deep):
    """Writes all blocks of a volume in rounds; each round writes one extent of `run_blocks` out of `layers`."""
    daemon.ctl("volume", "create", name, "--size", f"{given.mib}M")
    run_bytes, rounds = run_blocks * 4096, given.layers
    for nth in range(rounds):
        # Strided: the extent of this round, then a gap for those of the other rounds.
        daemon.fio(
            name,
            f"--rw=write:{run_bytes * (rounds - 1)}",
            f"--bs={run_bytes}",
            f"--offset={nth * run_bytes}",
            f"--io_size={given.mib * MIB // rounds}",
            f"--size={given.mib * MIB - nth * run_bytes}",
        )
        if is_deep and nth + 1 < rounds:
            daemon.ctl("snapshot", "create", name, "--name", f"s{nth}")


def main():
    given = arguments()
    blockd = given.blockd or bench.build_blockd()
    found, met = {}, True
    with bench.directory(given.dir) as work:
        daemon = Daemon(blockd, work)
        try:
            kinds = {"scattered": 1, "runs": 64}
            volumes = [(f"{kind}-{depth}", run, depth == "deep") for kind, run in kinds.items() for depth in ("flat", "deep")]
            for name, run_blocks, is_deep in volumes:
                make(daemon, name, given, run_blocks, is_deep)
            print(f"{given.layers} layers, {given.mib} MiB, thousand reads of 4 KiB a second over NBD")
            print("blocks      in flight  one layer  all layers  ratio")
            for in_flight in (1, 32):
                passes = {name: [] for name, _, _ in volumes}
                for _ in range(given.rounds):
                    for name in passes:
                        # The host of a virtual machine may have reclaimed idle memory.
                        daemon.fio(name, "--rw=read", "--bs=1M", f"--size={given.mib}M")
                        options = ["--rw=randread", "--bs=4k", f"--iodepth={in_flight}", f"--size={given.mib}M", "--time_based"]
                        job = daemon.fio(name, *options, f"--runtime={given.seconds}", "--randseed=7")
                        passes[name].append(job["read"]["iops"])
                found[in_flight] = passes
                for kind in kinds:
                    flat, deep = (statistics.median(passes[f"{kind}-{depth}"]) for depth in ("flat", "deep"))
                    met &= deep >= GOAL * flat
                    print(f"{kind:10}  {in_flight:9}  {flat / 1e3:9.1f}  {deep / 1e3:10.1f}  {deep / flat:5.2f}", flush=True)
        finally:
            daemon.stop()
    print(f"goal, {GOAL} of one layer: {'met' if met else 'MISSED'}")
    bench.write_figures(given, "depth-nbd", {"arguments": vars(given), "reads": found})


main()
