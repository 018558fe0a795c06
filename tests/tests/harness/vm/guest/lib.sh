# What the scripts share. Each command's failure ends the guest.
export BLOCKD_SOCKET=/data/blockd.sock NO_COLOR=1
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
    fail "blockd does not come up"
}

stop_daemon() { # stop_daemon SIGNAL
    kill "-$1" "$daemon"
    wait "$daemon"
}

# wait_load PID: its exit status; says every few seconds how far the device is, and fails when it stands still
wait_load() {
    before= still=0
    while kill -0 "$1" 2>/dev/null; do
        sleep 3
        now=$(awk '{ print $1 " reads, " $5 " writes, " $9 " under way" }' /sys/block/nbd0/stat)
        echo "nbd0: $now"
        if [ "$now" = "$before" ]; then still=$((still + 1)); else still=0; fi
        [ $still -lt 15 ] || fail "the device stands still"
        before=$now
    done
    wait "$1"
}

# load SIZE JOBS: each job writes a file below /mnt and reads it again, each time with other content, until the load is ended. With a
# time to run for, fio would write for all of it, and verify nothing.
load() {
    rm -f /tmp/enough
    pass=0
    until [ -e /tmp/enough ]; do
        pass=$((pass + 1))
        fio --name=load --directory=/mnt --size="$1" --numjobs="$2" --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 \
            --fsync=64 --randseed=$pass --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output=/fio.out >/dev/null 2>&1 || return 1
    done
    echo "the load was written and verified $pass times"
}

end_load() { # end_load PID: when it has verified what it wrote; its exit status
    touch /tmp/enough
    wait_load "$1"
}

# refused PATTERN COMMAND…: the command must fail with these words
refused() {
    wanted=$1
    shift
    if "$@" >/tmp/said 2>&1; then fail "$* was not refused"; fi
    grep -q "$wanted" /tmp/said || fail "$* said: $(cat /tmp/said)"
}

field() { # field VOLUME NAME: a field of the volume's attachment
    blockctl --json volume inspect "$1" | tr -d '\n ' | sed -n "s/.*\"attachment\":{[^}]*\"$2\":\"\{0,1\}\([^\",}]*\).*/\1/p"
}

sums() { (cd "$1" && find . -type f -not -path './lost+found/*' | sort | xargs sha256sum); }

# No error reached a file system or a program.
check_kernel_log() {
    if dmesg | grep -E 'I/O error, dev nbd|EXT4-fs (error|warning)|Buffer I/O error|lost async page write|blocked for more than|Out of memory' | grep -v 'dev vda'; then
        fail "the kernel's log has errors"
    fi
}
