# Functions of the guest's scripts. A failed check powers the guest off.
export BLOCKD_SOCKET=/data/blockd.sock NO_COLOR=1
# The console is a terminal, on which destructive commands ask.
exec </dev/null
starts=0

step() { echo "VM-STEP $* (at $(cut -d ' ' -f 1 /proc/uptime) s)"; }

fail() {
    echo "VM-FAILED $*"
    for log in /log*; do echo "--- $log"; tail -n 25 "$log"; done
    dmesg | tail -n 40
    poweroff -f
}

finish() {
    sync
    echo "VM-DONE $(cut -d ' ' -f 1 /proc/uptime) s"
    poweroff -f
    sleep 60
}

start_daemon() {
    starts=$((starts + 1))
    blockd --data-dir /data >"/log-$VM_BOOT-$starts" 2>&1 &
    daemon=$!
    for _ in $(seq 600); do
        blockctl status >/dev/null 2>&1 && return 0
        kill -0 "$daemon" 2>/dev/null || fail "blockd ended"
        sleep 0.1
    done
    fail "timeout while waiting for blockd"
}

stop_daemon() { # stop_daemon SIGNAL
    kill "-$1" "$daemon"
    wait "$daemon"
}

# becomes_true COMMAND…: waits until it succeeds, at most three minutes; reports every ten seconds
becomes_true() {
    for attempt in $(seq 1800); do
        "$@" && return 0
        [ $((attempt % 100)) != 0 ] || echo "waiting: $*"
        sleep 0.1
    done
    return 1
}

# nbd0_writes: completed writes of /dev/nbd0
nbd0_writes() { awk '{ print $5 }' /sys/block/nbd0/stat; }

# writes_or_ends PID COUNT: /dev/nbd0 has completed this number of writes, or the process has ended
writes_or_ends() { [ "$(nbd0_writes)" -ge "$2" ] || ! kill -0 "$1" 2>/dev/null; }

# wait_load PID: waits for its end, returns its exit status; reports the progress of the device, fails if it
# stalls
wait_load() {
    before= stalled=0
    while kill -0 "$1" 2>/dev/null; do
        sleep 3
        now=$(awk '{ print $1 " reads, " $5 " writes, " $9 " in flight" }' /sys/block/nbd0/stat)
        echo "nbd0: $now"
        if [ "$now" = "$before" ]; then stalled=$((stalled + 1)); else stalled=0; fi
        [ $stalled -lt 15 ] || fail "the device stalls"
        before=$now
    done
    wait "$1"
}

# load SIZE JOBS: each job repeatedly writes a file below /mnt and verifies it, until end_load. (With
# --time_based, fio would write until the end and verify nothing.)
load() {
    rm -f /tmp/end-load
    pass=0
    until [ -e /tmp/end-load ]; do
        pass=$((pass + 1))
        fio --name=load --directory=/mnt --size="$1" --numjobs="$2" --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 \
            --fsync=64 --randseed=$pass --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output=/fio.out >/dev/null 2>&1 || return 1
    done
    echo "the load was written and verified $pass times"
}

end_load() { # end_load PID: ends the load after its last verification, returns its exit status
    touch /tmp/end-load
    wait_load "$1"
}

# refused PATTERN COMMAND…: the command must fail with a message of this pattern
refused() {
    wanted=$1
    shift
    if "$@" >/tmp/output 2>&1; then fail "$* was not refused"; fi
    grep -q "$wanted" /tmp/output || fail "other error of $*: $(cat /tmp/output)"
}

field() { # field VOLUME NAME: prints a field of the volume's attachment
    blockctl --json volume inspect "$1" | tr -d '\n ' | sed -n "s/.*\"attachment\":{[^}]*\"$2\":\"\{0,1\}\([^\",}]*\).*/\1/p"
}

sums() { (cd "$1" && find . -type f -not -path './lost+found/*' | sort | xargs sha256sum); }

# check_kernel_log: no I/O error of the devices, no error of ext4, no stall
check_kernel_log() {
    if dmesg | grep -E 'I/O error, dev nbd|EXT4-fs (error|warning)|Buffer I/O error|lost async page write|blocked for more than|Out of memory' | grep -v 'dev vda'; then
        fail "errors in the kernel log"
    fi
}
