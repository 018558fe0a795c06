# Snapshots of a mounted filesystem that is frozen for them (--freeze-fs), under load, and with a daemon that dies or stands
# still between the freeze and the thaw.
VM_BOOT=3
insmod /nbd.ko || fail "insmod nbd.ko"
start_daemon
blockctl volume create data --size 256MiB >/dev/null || fail create
refused "no filesystem of these volumes is mounted" blockctl snapshot create data --freeze-fs
blockctl volume attach data --timeout 2s >/dev/null || fail attach
mke2fs -q -t ext4 /dev/nbd0 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt || fail mount

# alive: who writes to the filesystem gets through
alive() {
    dd if=/dev/zero of=/mnt/probe bs=4k count=1 conv=fsync 2>/dev/null &
    probe=$!
    for _ in $(seq 600); do
        kill -0 $probe 2>/dev/null || { wait $probe || fail "a write failed"; return 0; }
        sleep 0.1
    done
    fail "the filesystem is still frozen"
}

# begin_freezing NAME: begins a snapshot, and returns when the filesystem is being frozen for it
begin_freezing() {
    blockctl snapshot create data --name "$1" --freeze-fs >/tmp/said 2>&1 &
    creating=$!
    while kill -0 $creating 2>/dev/null; do
        grep -q thaw-watchdog /proc/$daemon/task/*/comm 2>/dev/null && return 0
    done
    return 1
}

# is_frozen: who begins to change the filesystem waits for its thaw
is_frozen() {
    rm -f /tmp/touched
    (touch /mnt/alive && : >/tmp/touched) &
    waiting=$!
    sleep 1
    [ ! -e /tmp/touched ] && grep -q rwsem /proc/$(pgrep -P $waiting touch || echo $waiting)/wchan
}

# Names come and go and pages are dirtied all the time.
fio --name=load --directory=/mnt --size=16M --numjobs=2 --rw=randwrite --bs=4k --ioengine=psync --fsync=256 --time_based \
    --runtime=3600 --output=/fio.out >/dev/null 2>&1 &
load=$!
(while :; do cp /usr/bin/bash /mnt/new && mv /mnt/new /mnt/name && rm /mnt/name; done) &
names=$!

step "frozen under load"
for number in 1 2 3 4; do
    sleep 1
    blockctl --json snapshot create data --name frozen$number --freeze-fs >/tmp/said 2>&1 || fail "snapshot: $(cat /tmp/said)"
    grep -q freeze-fs /tmp/said && grep -q thaw-fs /tmp/said || fail "what was done is not told: $(cat /tmp/said)"
    alive
done
blockctl snapshot create data --name plain >/dev/null || fail snapshot

step "restored without replay of a journal"
# check_clone SNAPSHOT: what e2fsck says of a volume that is made from it
check_clone() {
    blockctl volume clone copy --from "data@$1" >/dev/null || fail clone
    blockctl volume attach copy --read-only --device /dev/nbd1 >/dev/null || fail "attach copy"
    e2fsck -fn /dev/nbd1 >/tmp/fsck 2>&1
    status=$?
    blockctl volume detach copy >/dev/null || fail "detach copy"
    blockctl volume delete copy >/dev/null || fail "delete copy"
}
for number in 1 2 3 4; do
    check_clone frozen$number
    [ $status = 0 ] && ! grep -q journal /tmp/fsck || fail "frozen$number, e2fsck $status: $(cat /tmp/fsck)"
done
# What was not frozen has a journal to replay: the check above can fail.
check_clone plain
grep -q "skipping journal recovery" /tmp/fsck || fail "the load left nothing in the journal: $(cat /tmp/fsck)"

step "the daemon dies between the freeze and the thaw"
hits=0
for try in $(seq 25); do
    begin_freezing dies$try || { wait $creating || fail "snapshot: $(cat /tmp/said)"; continue; }
    stop_daemon KILL
    wait $creating
    if is_frozen; then hits=$((hits + 1)); fi
    start_daemon
    alive
    [ $hits -lt 2 ] || break
done
echo "the daemon died $hits times while the filesystem was frozen, in $try tries"
[ $hits -gt 0 ] || fail "the daemon never died while the filesystem was frozen"
[ -z "$(ls /data/quiesce)" ] || fail "a marker is left: $(ls /data/quiesce)"

step "the daemon stands still between the freeze and the thaw"
for try in $(seq 10); do
    begin_freezing still$try || { wait $creating || fail "snapshot: $(cat /tmp/said)"; continue; }
    kill -STOP $daemon
    is_frozen || { kill -CONT $daemon; wait $creating; alive; continue; }
    # Longer than the watchdog has patience.
    sleep 11
    kill -CONT $daemon
    alive
    wait $creating && echo "it was passed all the same" || grep "had to be thawed\|took too long" /tmp/said || fail "snapshot: $(cat /tmp/said)"
    stood=1
    break
done
[ "${stood-}" = 1 ] || fail "the daemon never stood still while the filesystem was frozen"
grep -q "frozen for too long" /log-3-$starts || echo "the barrier was passed before the watchdog woke up"
blockctl snapshot create data --name after --freeze-fs >/dev/null || fail "snapshot after"
alive

step "detach and attach"
refused "is mounted at /mnt" blockctl volume detach data
kill $load $names
wait $load $names
umount /mnt || fail umount
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"
blockctl volume detach data >/dev/null || fail detach
refused "no filesystem of these volumes is mounted" blockctl snapshot create data --freeze-fs
blockctl volume attach data --device /dev/nbd2 >/dev/null || fail "attach again"
mount -t ext4 /dev/nbd2 /mnt || fail "mount again"
blockctl snapshot create data --name again --freeze-fs >/dev/null || fail "snapshot again"
alive
check_clone after
[ $status = 0 ] || fail "after, e2fsck $status: $(cat /tmp/fsck)"
check_clone again
[ $status = 0 ] && ! grep -q journal /tmp/fsck || fail "again, e2fsck $status: $(cat /tmp/fsck)"
umount /mnt || fail umount
stop_daemon TERM || fail "the daemon did not stop cleanly"
check_kernel_log
