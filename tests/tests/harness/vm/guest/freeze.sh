# Snapshots of mounted filesystems that are frozen for them (--freeze-fs): under load; and with a daemon that dies or stands
# still while they are frozen. Comes after after.sh in the same boot: no volume is attached.
#
# How long a filesystem is frozen depends on nothing but what this script does. Who freezes one waits for the writes to it that
# are under way: a program that splices from an empty pipe into a file is inside such a write until it is killed, so
# the second filesystem is not frozen, and the first one stays frozen, for as long as the script likes.
# The numbers of system calls below, here and in what perl calls, are those of one architecture.
[ "$(uname -m)" = x86_64 ] || fail "the numbers of the system calls are not known on $(uname -m)"
# For the commands before and after.
[ -e /bin/sh ] || ln -s /usr/bin/bash /bin/sh
blockctl volume create first --size 256MiB >/dev/null || fail create
blockctl volume create second --size 64MiB >/dev/null || fail create
refused "no filesystem of these volumes is mounted" blockctl snapshot create first --freeze-fs
for volume in first second; do blockctl volume attach $volume --timeout 2s >/dev/null || fail attach; done
[ "$(field first device) $(field second device)" = "/dev/nbd0 /dev/nbd1" ] || fail "other devices"
mke2fs -q -t ext4 /dev/nbd0 && mke2fs -q -t ext4 /dev/nbd1 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt && mount -t ext4 /dev/nbd1 /mnt2 || fail mount

# becomes_true COMMAND…: waits for it, for three minutes at most; says now and then that it does
becomes_true() {
    for look in $(seq 1800); do
        "$@" && return 0
        [ $((look % 100)) != 0 ] || echo "waiting: $*"
        sleep 0.1
    done
    return 1
}

is_gone() { ! kill -0 "$1" 2>/dev/null; }

# in_call PID PATTERN: it is in such a system call; the first arguments are in hexadecimal
in_call() { read -r call <"/proc/$1/syscall" && [[ $call =~ ^$2 ]]; } 2>/dev/null
SPLICE="275 "
# Waiting for word, for so long and no longer: the filesystem is frozen.
HOLDING="271 0x[0-9a-f]* 0x1 0x[0-9a-f]{4}"
FREEZE="16 0x[0-9a-f]* 0xc0045877"
THAW="16 0x[0-9a-f]* 0xc0045878"

# alive DIR: who writes to the filesystem gets through
alive() {
    dd if=/dev/zero of="$1/written" bs=4k count=1 conv=fsync 2>/dev/null &
    writing=$!
    becomes_true is_gone $writing || fail "the filesystem at $1 is still frozen"
    wait $writing || fail "a write to $1 failed"
}

# Starts a write to the second filesystem that blocks until the thaw.
hold() {
    perl -e 'pipe(R, W); syscall(275, fileno(R), 0, 1, 0, 4096, 0)' >/mnt2/held &
    holding=$!
    becomes_true in_call $holding "$SPLICE" || fail "nothing is held: $(cat /proc/$holding/syscall)"
}

let_go() {
    kill -KILL $holding
    wait $holding 2>/dev/null
}

# holder_of DIR: finds the process that freezes the filesystem there, without a process of its own for each it looks at
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

holds_back() { holder_of /mnt2 && in_call "$holder" "$FREEZE"; }

# begin_frozen NAME: begins a snapshot of both, and returns when the first one is frozen and the second one is held back, with
# a writer waiting for the first one
begin_frozen() {
    blockctl snapshot create-group --volumes first,second --name "$1" --freeze-fs >/tmp/said 2>&1 &
    creating=$!
    becomes_true holds_back || fail "nothing is frozen: $(cat /tmp/said)"
    touch /mnt/touched &
    waiting=$!
}

check_clone() { # check_clone SNAPSHOT: what e2fsck says of a volume that is made from it
    blockctl volume clone copy --from "first@$1" >/dev/null || fail clone
    blockctl volume attach copy --read-only --device /dev/nbd2 >/dev/null || fail "attach copy"
    e2fsck -fn /dev/nbd2 >/tmp/fsck 2>&1
    status=$?
    blockctl volume detach copy >/dev/null || fail "detach copy"
    blockctl volume delete copy >/dev/null || fail "delete copy"
}

# names_changed: files have come since the mark was set
names_changed() { [ /mnt/name -nt /mnt/mark ] || [ /mnt/new -nt /mnt/mark ]; }

step "frozen under load"
rm -f /tmp/enough
fio --name=load --directory=/mnt --size=16M --rw=randwrite --bs=4k --ioengine=psync --fsync=256 --time_based \
    --runtime=3600 --output=/fio.out >/dev/null 2>&1 &
load=$!
(while [ ! -e /tmp/enough ]; do cp /usr/bin/bash /mnt/new && mv /mnt/new /mnt/name && rm /mnt/name; done) &
names=$!
for number in 1 2; do
    # Files have come and gone since the last one.
    touch /mnt/mark
    becomes_true names_changed || fail "no file comes or goes under /mnt"
    blockctl --json snapshot create first --name frozen$number --freeze-fs --pre-command "exit 0" --post-command "exit 5" \
        >/tmp/said 2>&1 || fail "snapshot: $(cat /tmp/said)"
    tr -d ' \n' </tmp/said >/tmp/steps
    grep -q '"kind":"pre-command".*"exitStatus":0.*freeze-fs.*thaw-fs.*"kind":"post-command".*"exitStatus":5' /tmp/steps ||
        fail "what was done is not told: $(cat /tmp/said)"
    alive /mnt
done
blockctl --json snapshot list first | tr -d ' \n' >/tmp/steps
grep -q '"exitStatus":5' /tmp/steps || fail "what was done is not kept: $(cat /tmp/steps)"
blockctl snapshot create first --name plain >/dev/null || fail snapshot
kill $load
: >/tmp/enough
wait $load $names

step "restored without replay of a journal"
for number in 1 2; do
    check_clone frozen$number
    [ $status = 0 ] && ! grep -q journal /tmp/fsck || fail "frozen$number, e2fsck $status: $(cat /tmp/fsck)"
done
# What was not frozen has a journal to replay: the check above can fail.
check_clone plain
grep -q "skipping journal recovery" /tmp/fsck || fail "there is nothing in the journal: $(cat /tmp/fsck)"

step "the daemon stands still while a filesystem is frozen"
# The daemon thaws by itself when it has waited for ten seconds: on a slow machine it may have done so before it is stopped.
for _ in $(seq 10); do
    hold
    begin_frozen still
    kill -STOP $daemon
    holder_of /mnt || fail "it has no holder process"
    is_frozen= && in_call "$holder" "$HOLDING" && is_frozen=1 && break
    kill -CONT $daemon
    let_go
    wait $creating $waiting
done
[ -n "$is_frozen" ] || fail "it is never frozen when the daemon is stopped: $call"
# Its end has to be written, too, which the daemon does.
becomes_true in_call "$holder" "$THAW" || fail "the process that froze it does not thaw it: $(cat "/proc/$holder/syscall")"
kill -CONT $daemon
# The second one is held all the while: the daemon cannot have come to its own thaw.
becomes_true is_gone $waiting || fail "it was not thawed"
is_gone $creating && fail "nothing was held: $(cat /tmp/said)"
alive /mnt
let_go
wait $creating && fail "there is a snapshot of a filesystem that was not frozen any more"
grep -q "timeout" /tmp/said || fail "snapshot: $(cat /tmp/said)"
alive /mnt2

for who in alone "with those who freeze"; do
    step "the daemon dies while a filesystem is frozen, $who"
    hold
    begin_frozen dies
    if [ "$who" != alone ]; then
        for dir in /mnt /mnt2; do holder_of $dir && kill -KILL $holder; done
    fi
    stop_daemon KILL
    wait $creating && fail "there is a snapshot of a daemon that died"
    start_daemon
    becomes_true is_gone $waiting || fail "it was not thawed"
    alive /mnt
    # Who freezes the second one is at it still, dead or alive, and is done now.
    let_go
    alive /mnt2
    becomes_true no_marker || fail "a marker is left: $(ls /data/quiesce)"
done
becomes_true no_holder || fail "processes are left: $holder"
blockctl snapshot list first | grep "still\|dies" && fail "a snapshot is left"

step "the daemon dies while a freeze waits for what it is to write"
dd if=/dev/zero of=/mnt/dirty bs=1M count=8 2>/dev/null || fail dd
kill -STOP $daemon
mkfifo /tmp/requests
blockd --hold-filesystem=/mnt --hold-timeout-ms=600000 </tmp/requests >/tmp/answers &
holder=$!
exec 9>/tmp/requests
# The number of the device first, then the request.
perl -e 'print pack("Q<", (stat "/mnt")[0])' >&9 || fail "the device is not told"
printf f >&9
becomes_true in_call $holder "$FREEZE" || fail "it is not being frozen"
stop_daemon KILL
# Its connections ended, so it may just now run on, to send the same writes again: where it waits is known only when it does.
waits_or_answers() { in_call $holder "$FREEZE" || [ -s /tmp/answers ]; }
becomes_true waits_or_answers || fail "it does something else: $(cat /proc/$holder/syscall)"
[ ! -s /tmp/answers ] || fail "the freeze did not wait for the daemon: $(cat /tmp/answers)"
# No other process may have the other end of the pipe.
start_daemon 9>&-
becomes_true grep -q ok /tmp/answers || fail "it was not frozen: $(cat /tmp/answers)"
touch /mnt/touched 9>&- &
waiting=$!
exec 9>&-
wait $holder || fail "the process that froze it failed"
becomes_true is_gone $waiting || fail "it is still frozen"
alive /mnt

step "what was frozen is whole"
umount /mnt && umount /mnt2 || fail umount
for device in /dev/nbd0 /dev/nbd1; do e2fsck -fn $device >/tmp/fsck 2>&1 || fail "e2fsck $device: $(cat /tmp/fsck)"; done
for volume in first second; do blockctl volume detach $volume >/dev/null || fail "detach $volume"; done
stop_daemon TERM || fail "the daemon did not stop cleanly"
check_kernel_log
