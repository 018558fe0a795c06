# First boot: an attached volume under load, until the power is cut.
VM_BOOT=1
start_daemon
blockctl volume create data --size 1GiB || fail create
blockctl credentials create here --provider local --path /store >/dev/null || fail credentials

step "without the module"
refused "modprobe nbd" blockctl volume attach data
[ -z "$(field data device)" ] || fail "a refused attachment is listed"
insmod /nbd.ko || fail "insmod nbd.ko"

step "attach"
# Requests in flight when the daemon dies take this timeout.
blockctl volume attach data --persistent --timeout 2s || fail attach
[ "$(field data device)" = /dev/nbd0 ] && [ "$(field data connected)" = true ] || fail "attachment not listed: $(blockctl -j volume inspect data)"
blockctl volume attach data --persistent --timeout 2s >/dev/null || fail "attaching again in the same way"
refused "with other options" blockctl volume attach data --read-only
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 4096 ] || fail "block size"
[ "$(cat /sys/block/nbd0/size)" = 2097152 ] || fail size
[ "$(cat /sys/block/nbd0/queue/fua)" = 1 ] || fail "the device has no FUA"
mke2fs -q -t ext4 /dev/nbd0 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt || fail mount

step "refused while mounted"
refused "/dev/nbd0 is mounted at /mnt" blockctl volume detach data
refused "is mounted at" blockctl volume detach /dev/nbd0
refused "attached at /dev/nbd0: detach it first" blockctl volume delete data

step "another volume is attached read-only and detached"
blockctl volume create other --size 64MiB >/dev/null
blockctl volume attach other --read-only --connections 1 --block-size 512 --device /dev/nbd3 >/dev/null || fail "attach other"
[ "$(cat /sys/block/nbd3/ro) $(cat /sys/block/nbd3/queue/logical_block_size)" = "1 512" ] || fail "read-only"
if dd if=/dev/zero of=/dev/nbd3 bs=4096 count=1 conv=fsync 2>/dev/null; then fail "a read-only device was written"; fi
blockctl volume detach /dev/nbd3 >/dev/null || fail "detach other"
blockctl volume create third --size 64MiB >/dev/null
blockctl volume attach third --device /dev/nbd3 >/dev/null || fail "attach a detached device"
blockctl volume create fourth --size 64MiB >/dev/null
refused "/dev/nbd3: another NBD client uses it" blockctl volume attach fourth --device /dev/nbd3
blockctl volume detach third >/dev/null || fail "detach third"
for volume in other third fourth; do blockctl volume delete $volume >/dev/null || fail "delete $volume"; done

step "real files, a snapshot, a backup"
mkdir /mnt/files
cp -r /usr/bin /mnt/files/ && cp -r /log* /mnt/files/ || fail cp
sync
sums /mnt/files >/sums-1
blockctl snapshot create data --name first >/dev/null || fail snapshot
blockctl cloudsnap backup data --wait >/tmp/backup 2>&1 || fail "backup: $(cat /tmp/backup)"

step "kill -9 of the daemon under load"
load 4M 2 &
load=$!
for signal in KILL KILL TERM KILL; do
    becomes_true writes_or_ends $load $(($(nbd0_writes) + 500)) || fail "the load stalls: $(cat /fio.out)"
    kill -0 $load 2>/dev/null || fail "the load ended too early: $(cat /fio.out)"
    stop_daemon $signal
    start_daemon
    echo "restarted after SIG$signal, connected: $(field data connected)"
done
end_load $load || fail "fio: $(cat /fio.out)"
grep -E 'err=' /fio.out
check_kernel_log
[ "$(sums /mnt/files)" = "$(cat /sums-1)" ] || fail "files changed"
grep -l 'dead connections of the device replaced\|attached again' /log-1-* || fail "no daemon reconnected the device"

step "unmount and check"
umount /mnt || fail umount
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"

step "more dirty data than memory"
mount -t ext4 /dev/nbd0 /mnt || fail mount
rm -f /mnt/load.*
total_kib=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)
dirty_mib=$((total_kib / 1024 + 64))
# One half is written through the page cache, the other through memory maps, whose writers the kernel
# throttles less.
fio --directory=/mnt --bs=64k --rw=write --verify=crc32c --verify_fatal=1 --size=$((dirty_mib / 2))M --output=/fio2.out \
    --name=cached --ioengine=psync --name=mapped --ioengine=mmap >/dev/null 2>&1 || fail "fio: $(cat /fio2.out)"
echo "dirtied $dirty_mib MiB in a guest of $((total_kib / 1024)) MiB"
# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets and threads inherit.
for thread in /proc/$daemon/task/*; do
    # The thread may have ended.
    stat=$(cat "$thread/stat" 2>/dev/null) && [ -n "$stat" ] || continue
    flags=$(echo "${stat##*) }" | cut -d ' ' -f 7)
    [ $((flags & 0x180000)) = $((0x180000)) ] || fail "$(cat "$thread/comm") is no I/O flusher: $flags"
done
[ "$(awk '/^VmLck/ { print $2 }' "/proc/$daemon/status")" -gt 0 ] || fail "the daemon's memory is not locked"
check_kernel_log
rm -f /mnt/cached.* /mnt/mapped.*

step "restore and compare"
umount /mnt || fail umount
snap=$(blockctl --json cloudsnap list | tr -d '\n ' | sed -n 's/.*"cloudSnapshotId":"\([^"]*\)".*/\1/p')
blockctl cloudsnap restore --snap "$snap" --volume back --wait >/tmp/restore 2>&1 || fail "restore: $(cat /tmp/restore)"
blockctl volume attach back --device /dev/nbd1 >/dev/null || fail "attach back"
mount -t ext4 /dev/nbd1 /mnt2 || fail "mount back"
[ "$(sums /mnt2/files)" = "$(cat /sums-1)" ] || fail "the restored files differ"
umount /mnt2
e2fsck -fn /dev/nbd1 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"
blockctl volume detach back >/dev/null || fail "detach back"
blockctl volume delete back >/dev/null || fail "delete back"

step "the power is cut"
mount -t ext4 /dev/nbd0 /mnt || fail mount
mkdir /mnt/synced
fio --name=noise --directory=/mnt --size=32M --rw=randwrite --bs=16k --ioengine=psync --time_based --runtime=600 >/dev/null 2>&1 &
for number in $(seq 100000); do
    { echo "file $number"; dd if=/usr/bin/blockctl bs=1k skip=$((number % 4096)) count=40 2>/dev/null; } >/tmp/content
    dd if=/tmp/content of=/mnt/synced/$number bs=64k conv=fsync 2>/dev/null || fail "write $number"
    # The sync of the directory makes the name durable.
    sync /mnt/synced || fail "sync $number"
    echo "VM-SYNCED $number"
done
