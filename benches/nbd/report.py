"""Medians, ratios and goals."""

from statistics import median

import workloads

BEST_PEER_FACTOR = 1.25
NULL_FACTOR = 0.95
HIGH_FACTOR = 1.5
HIGH_WORKLOADS = ("depth1", "fsync32", "read1m", "mix")
SNAPSHOT_FACTOR = 0.8
NULL = "nbdkit-null"
FILE = "file"


def medians(passes):
    """(workload, state, server) -> median figures over the rounds."""
    groups = {}
    for one in passes:
        groups.setdefault((one["workload"], one["state"], one["server"]), []).append(one)
    return {
        key: {
            "rounds": len(group),
            "iops": median(one["iops"] for one in group),
            "mib_per_s": median(one["mib_per_s"] for one in group),
            "server_cpu_us_per_op": median(one["server_cpu_us_per_op"] for one in group),
            "client_cpu_us_per_op": median(one["client_cpu_us_per_op"] for one in group),
            "p50_us": median(one["latency_us"]["p50"] for one in group),
            "p99_us": median(one["latency_us"]["p99"] for one in group),
            "spread": max(one["iops"] for one in group) / min(one["iops"] for one in group),
        }
        for key, group in groups.items()
    }


def goals(table, servers, subject):
    """Returns the goals of `subject` and its results for each workload and state."""
    found = []
    for workload in workloads.WORKLOADS:
        for state in workloads.STATES:
            ours = table.get((workload.name, state, subject))
            if ours:
                goal = goal_of(table, servers, subject, workload, state, ours["iops"])
                if goal:
                    found.append({"workload": workload.name, "state": state, **goal})
    return found


def goal_of(table, servers, subject, workload, state, ours):
    if state in (workloads.SNAPSHOTS, workloads.SCHEDULED):
        return goal_of_snapshots(table, subject, workload, state, ours)
    peers = {
        server.label: table[workload.name, state, server.label]["iops"]
        for server in servers
        if server.is_file_backed
        and server.flush_is_durable
        and not server.label.startswith("blockd")
        and (workload.name, state, server.label) in table
    }
    null = table.get((workload.name, workloads.FRESH, NULL))
    parts, passed, goal = [], False, {}
    if peers:
        best = max(peers, key=peers.get)
        goal["of_best_peer"] = ours / peers[best]
        goal["best_peer"] = best
        factor = HIGH_FACTOR if workload.name in HIGH_WORKLOADS else BEST_PEER_FACTOR
        passed |= goal["of_best_peer"] >= factor
        parts.append(f"{goal['of_best_peer']:.2f} x {best} (goal {factor})")
    if null and workload.name not in HIGH_WORKLOADS:
        goal["of_null"] = ours / null["iops"]
        passed |= goal["of_null"] >= NULL_FACTOR
        parts.append(f"{goal['of_null']:.2f} x null (or {NULL_FACTOR})")
    return {"passed": passed, "text": ", ".join(parts), **goal} if parts else None


def goal_of_snapshots(table, subject, workload, state, ours):
    """Compares first writes, which allocate memory and disk space, with a fresh disk, and others with an allocated one."""
    first = workloads.touches_once(workload, state)
    against = [workloads.FRESH, workloads.ALLOCATED] if first else [workloads.ALLOCATED]
    ratios = {
        state: ours / table[workload.name, state, subject]["iops"]
        for state in against
        if (workload.name, state, subject) in table
    }
    if not ratios:
        return None
    parts = [f"{ratio:.2f} x {state} without snapshots" for state, ratio in ratios.items()]
    text = f"{', '.join(parts)} (goal {SNAPSHOT_FACTOR})"
    passed = min(ratios.values()) >= SNAPSHOT_FACTOR
    limit = limit_of_first_writes(table, workload) if first else None
    if limit:
        text += f"; limit of the kernel: a new file {limit:.2f} x an allocated one"
    return {"passed": passed, "text": text, "of_no_snapshots": ratios, "limit": limit}


def limit_of_first_writes(table, workload):
    """Returns the ratio of a new file and an allocated one without a server."""
    new, allocated = (table.get((workload.name, state, FILE)) for state in (workloads.FRESH, workloads.ALLOCATED))
    return new["iops"] / allocated["iops"] if new and allocated else None


def print_medians(table, servers):
    for workload in workloads.WORKLOADS:
        for state in workloads.STATES:
            rows = [(server.label, table.get((workload.name, state, server.label))) for server in servers]
            rows = [(label, row) for label, row in rows if row]
            if not rows:
                continue
            base = next((row for label, row in rows if label.startswith("blockd")), rows[0][1])
            unit = "MiB/s" if workload.in_mib else "IOPS"
            print(f"\n{workload.text}; {state}")
            print(
                f"  {'server':<16}{unit:>10}{'ratio':>8}{'server us/op':>14}{'client us/op':>14}"
                f"{'p50 us':>9}{'p99 us':>9}{'max/min':>9}"
            )
            for label, row in rows:
                value = row["mib_per_s"] if workload.in_mib else row["iops"]
                print(
                    f"  {label:<16}{value:>10,.0f}{row['iops'] / base['iops']:>8.2f}"
                    f"{row['server_cpu_us_per_op']:>14.1f}{row['client_cpu_us_per_op']:>14.1f}"
                    f"{row['p50_us']:>9.0f}{row['p99_us']:>9.0f}{row['spread']:>9.2f}"
                )


def print_goals(found):
    if not found:
        return
    print("\nGoals")
    for goal in found:
        verdict = "pass" if goal["passed"] else "MISS"
        print(f"  {verdict}  {goal['workload']:<10}{goal['state']:<11}{goal['text']}")
    passed = sum(goal["passed"] for goal in found)
    print(f"  {passed} of {len(found)} met")


def print_durability(servers):
    print("Durability")
    for server in servers:
        flush = "FLUSH is an fdatasync" if server.flush_is_durable else "FLUSH does nothing"
        kill = "keeps" if server.survives_kill else "may lose"
        print(f"  {server.label:<16}{flush}; a killed server {kill} acknowledged writes")
