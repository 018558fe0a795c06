# Snapshots of mounted filesystems with --freeze-fs: under load, and with a daemon that dies or stops while
# they are frozen. Runs after after.sh in the same boot: no volume is attached.
#
# The script controls how long the filesystems are frozen. FIFREEZE waits for running writes: a program that
# splices from an empty pipe into a file is inside a write until it is killed. Meanwhile the second filesystem
# is not frozen and the first one stays frozen. The system call numbers below and in the perl commands are
# those of x86-64.
[ "$(uname -m)" = x86_64 ] || fail "unknown system call numbers of $(uname -m)"
# The daemon runs hooks with /bin/sh.
[ -e /bin/sh ] || ln -s /usr/bin/bash /bin/sh
blockctl volume create first --size 256MiB >/dev/null || fail create
blockctl volume create second --size 64MiB >/dev/null || fail create
refused "no filesystem of these volumes is mounted" blockctl snapshot create first --freeze-fs
for volume in first second; do blockctl volume attach $volume --timeout 2s >/dev/null || fail attach; done
[ "$(field first device) $(field second device)" = "/dev/nbd0 /dev/nbd1" ] || fail "unexpected devices"
mke2fs -q -t ext4 /dev/nbd0 && mke2fs -q -t ext4 /dev/nbd1 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt && mount -t ext4 /dev/nbd1 /mnt2 || fail mount

is_gone() { ! kill -0 "$1" 2>/dev/null; }

# in_call PID PATTERN: the process is in this system call; arguments are hexadecimal
in_call() { read -r call <"/proc/$1/syscall" && [[ $call =~ ^$2 ]]; } 2>/dev/null
SPLICE="275 "
# ppoll of the holder process with a timeout: the filesystem is frozen.
HOLDING="271 0x[0-9a-f]* 0x1 0x[0-9a-f]{4}"
FREEZE="16 0x[0-9a-f]* 0xc0045877"
THAW="16 0x[0-9a-f]* 0xc0045878"

# assert_writable DIR: writes to the filesystem complete
assert_writable() {
    dd if=/dev/zero of="$1/written" bs=4k count=1 conv=fsync 2>/dev/null &
    writing=$!
    becomes_true is_gone $writing || fail "the filesystem at $1 is still frozen"
    wait $writing || fail "a write to $1 failed"
}

# start_blocked_write: starts a write to the second filesystem that runs until end_blocked_write
start_blocked_write() {
    perl -e 'pipe(R, W); syscall(275, fileno(R), 0, 1, 0, 4096, 0)' >/mnt2/held &
    blocked=$!
    becomes_true in_call $blocked "$SPLICE" || fail "the write is not blocked: $(cat /proc/$blocked/syscall)"
}

end_blocked_write() {
    kill -KILL $blocked
    wait $blocked 2>/dev/null
}

# holder_of DIR: finds the process that freezes this filesystem, without starting a process for each candidate
holder_of() {
    for process in /proc/[0-9]*; do
        while IFS= read -r -d '' word; do
            if [ "$word" = "--hold-filesystem=$1" ]; then
                holder=${process#/proc/}
                return 0
            fi
        done <"$process/cmdline"
    done
    return 1
} 2>/dev/null

no_holder() { ! holder_of /mnt && ! holder_of /mnt2; }
no_marker() { [ -z "$(ls /data/quiesce)" ]; }

freeze_waits() { holder_of /mnt2 && in_call "$holder" "$FREEZE"; }

# start_frozen_snapshot NAME: starts a snapshot of both; returns when the first filesystem is frozen and the
# freeze of the second one waits; starts a write to the first one
start_frozen_snapshot() {
    blockctl snapshot create-group --volumes first,second --name "$1" --freeze-fs >/tmp/output 2>&1 &
    creating=$!
    becomes_true freeze_waits || fail "the freeze does not wait: $(cat /tmp/output)"
    touch /mnt/touched &
    waiting=$!
}

check_clone() { # check_clone SNAPSHOT: runs e2fsck on a clone of the snapshot
    blockctl volume clone copy --from "first@$1" >/dev/null || fail clone
    blockctl volume attach copy --read-only --device /dev/nbd2 >/dev/null || fail "attach copy"
    e2fsck -fn /dev/nbd2 >/tmp/fsck 2>&1
    status=$?
    blockctl volume detach copy >/dev/null || fail "detach copy"
    blockctl volume delete copy >/dev/null || fail "delete copy"
}

# names_changed: files were created since the mark
names_changed() { [ /mnt/name -nt /mnt/mark ] || [ /mnt/new -nt /mnt/mark ]; }

step "frozen under load"
rm -f /tmp/end-load
fio --name=load --directory=/mnt --size=16M --rw=randwrite --bs=4k --ioengine=psync --fsync=256 --time_based \
    --runtime=3600 --output=/fio.out >/dev/null 2>&1 &
load=$!
(while [ ! -e /tmp/end-load ]; do cp /usr/bin/bash /mnt/new && mv /mnt/new /mnt/name && rm /mnt/name; done) &
names=$!
for number in 1 2; do
    # Files are created and removed between the snapshots.
    touch /mnt/mark
    becomes_true names_changed || fail "no file is created under /mnt"
    blockctl --json snapshot create first --name frozen$number --freeze-fs --pre-command "exit 0" --post-command "exit 5" \
        >/tmp/output 2>&1 || fail "snapshot: $(cat /tmp/output)"
    tr -d ' \n' </tmp/output >/tmp/steps
    grep -q '"kind":"pre-command".*"exitStatus":0.*freeze-fs.*thaw-fs.*"kind":"post-command".*"exitStatus":5' /tmp/steps ||
        fail "the steps are not reported: $(cat /tmp/output)"
    assert_writable /mnt
done
blockctl --json snapshot list first | tr -d ' \n' >/tmp/steps
grep -q '"exitStatus":5' /tmp/steps || fail "the steps are not stored: $(cat /tmp/steps)"
blockctl snapshot create first --name plain >/dev/null || fail snapshot
kill $load
: >/tmp/end-load
wait $load $names

step "clones of frozen filesystems need no journal replay"
for number in 1 2; do
    check_clone frozen$number
    [ $status = 0 ] && ! grep -q journal /tmp/fsck || fail "frozen$number, e2fsck $status: $(cat /tmp/fsck)"
done
# Without a freeze the journal needs a replay: the check above can fail.
check_clone plain
grep -q "skipping journal recovery" /tmp/fsck || fail "the journal is empty: $(cat /tmp/fsck)"

step "the daemon is stopped while a filesystem is frozen"
# The daemon thaws after ten seconds: on a slow machine it may have done so before SIGSTOP.
for _ in $(seq 10); do
    start_blocked_write
    start_frozen_snapshot still
    kill -STOP $daemon
    holder_of /mnt || fail "no holder process of /mnt"
    is_frozen= && in_call "$holder" "$HOLDING" && is_frozen=1 && break
    kill -CONT $daemon
    end_blocked_write
    wait $creating $waiting
done
[ -n "$is_frozen" ] || fail "the filesystem was not frozen at SIGSTOP: $call"
# The thaw writes to the device, which needs the daemon.
becomes_true in_call "$holder" "$THAW" || fail "the holder process does not thaw: $(cat "/proc/$holder/syscall")"
kill -CONT $daemon
# The second freeze still waits: the thaw was not the daemon's.
becomes_true is_gone $waiting || fail "the filesystem was not thawed"
is_gone $creating && fail "the snapshot has ended: $(cat /tmp/output)"
assert_writable /mnt
end_blocked_write
wait $creating && fail "a snapshot was created after the thaw"
grep -q "timeout" /tmp/output || fail "snapshot: $(cat /tmp/output)"
assert_writable /mnt2

for variant in alone "with its holder processes"; do
    step "the daemon dies while a filesystem is frozen, $variant"
    start_blocked_write
    start_frozen_snapshot dies
    if [ "$variant" != alone ]; then
        for dir in /mnt /mnt2; do holder_of $dir && kill -KILL $holder; done
    fi
    stop_daemon KILL
    wait $creating && fail "the snapshot of a killed daemon succeeded"
    start_daemon
    becomes_true is_gone $waiting || fail "the filesystem was not thawed"
    assert_writable /mnt
    # The freeze of the second filesystem ends with the blocked write.
    end_blocked_write
    assert_writable /mnt2
    becomes_true no_marker || fail "a marker is left: $(ls /data/quiesce)"
done
becomes_true no_holder || fail "holder processes are left: $holder"
blockctl snapshot list first | grep "still\|dies" && fail "a snapshot is left"

step "the daemon dies while a freeze waits for writeback"
dd if=/dev/zero of=/mnt/dirty bs=1M count=8 2>/dev/null || fail dd
kill -STOP $daemon
mkfifo /tmp/requests
blockd --hold-filesystem=/mnt --hold-timeout-ms=600000 </tmp/requests >/tmp/replies &
holder=$!
exec 9>/tmp/requests
# The protocol: the device number, then the request.
perl -e 'print pack("Q<", (stat "/mnt")[0])' >&9 || fail "write failed on the pipe"
printf f >&9
becomes_true in_call $holder "$FREEZE" || fail "the freeze did not start"
stop_daemon KILL
# The kernel may be sending the writes again after the loss of the connections: wait until the process waits.
waits_or_replies() { in_call $holder "$FREEZE" || [ -s /tmp/replies ]; }
becomes_true waits_or_replies || fail "unexpected system call: $(cat /proc/$holder/syscall)"
[ ! -s /tmp/replies ] || fail "the freeze did not wait for the daemon: $(cat /tmp/replies)"
# The daemon must not inherit the pipe.
start_daemon 9>&-
becomes_true grep -q ok /tmp/replies || fail "the filesystem was not frozen: $(cat /tmp/replies)"
touch /mnt/touched 9>&- &
waiting=$!
exec 9>&-
wait $holder || fail "the holder process failed"
becomes_true is_gone $waiting || fail "the filesystem is still frozen"
assert_writable /mnt

step "the filesystems are consistent"
umount /mnt && umount /mnt2 || fail umount
for device in /dev/nbd0 /dev/nbd1; do e2fsck -fn $device >/tmp/fsck 2>&1 || fail "e2fsck $device: $(cat /tmp/fsck)"; done
for volume in first second; do blockctl volume detach $volume >/dev/null || fail "detach $volume"; done
stop_daemon TERM || fail "the daemon did not stop cleanly"
check_kernel_log
