"""Latency of guest writes with and without a backup."""

import json
import statistics
import subprocess
import threading


def p99_us(uri, seconds):
    command = ["fio", "--name=g", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=1", "--size=1G"]
    command += ["--time_based", f"--runtime={seconds}", "--rate_iops=2000", "--output-format=json", "--randseed=7"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job["write"]["clat_ns"]["percentile"]["99.000000"] / 1000


def measure(blockd, volume, credential, seconds, rounds):
    """Returns the medians of both p99 latencies; the passes alternate."""
    alone, beside = [], []
    uri = blockd.uri(volume)
    for _ in range(rounds):
        alone.append(p99_us(uri, seconds))
        is_over, failed = threading.Event(), []

        def back_up():
            try:
                while not is_over.is_set():
                    blockd.ctl("cloudsnap", "backup", volume, "--cred-id", credential, "--full", "--reupload", "--wait")
            except Exception as error:
                failed.append(error)

        backups = threading.Thread(target=back_up)
        backups.start()
        beside.append(p99_us(uri, seconds))
        is_over.set()
        backups.join()
        if failed:
            raise failed[0]
    return {"alone_us": statistics.median(alone), "beside_us": statistics.median(beside), "alone": alone, "beside": beside}
