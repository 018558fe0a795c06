# Second boot, after the power cut: VM_SYNCED files were synced before.
VM_BOOT=2
insmod /nbd.ko || fail "insmod nbd.ko"
step "the persistent attachment is restored"
start_daemon
[ "$(field data device)" = /dev/nbd0 ] && [ "$(field data connected)" = true ] || fail "not attached: $(blockctl -j volume inspect data)"

step "the journal is replayed"
e2fsck -fp /dev/nbd0 >/tmp/fsck 2>&1
[ $? -le 1 ] || fail "e2fsck: $(cat /tmp/fsck)"
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || fail "e2fsck again: $(cat /tmp/fsck)"
mount -t ext4 /dev/nbd0 /mnt || fail mount

step "synced files survive"
for number in $(seq "$VM_SYNCED"); do
    { echo "file $number"; dd if=/usr/bin/blockctl bs=1k skip=$((number % 4096)) count=40 2>/dev/null; } >/tmp/content
    cmp -s /tmp/content /mnt/synced/$number || fail "synced file $number of $VM_SYNCED differs"
done
[ "$(sums /mnt/files)" = "$(cat /sums-1)" ] || fail "files changed"
echo "$VM_SYNCED synced files survived"
umount /mnt || fail umount
blockctl cloudsnap backup data --wait >/tmp/backup 2>&1 || fail "backup: $(cat /tmp/backup)"

if blockctl volume resize --help >/dev/null 2>&1; then
    step "growth"
    mount -t ext4 /dev/nbd0 /mnt || fail mount
    blockctl volume resize data --size 1280MiB >/dev/null || fail resize
    [ "$(cat /sys/block/nbd0/size)" = 2621440 ] || fail "the device did not grow: $(cat /sys/block/nbd0/size)"
    umount /mnt || fail umount
fi

step "detach"
stop_daemon TERM || fail "the daemon did not stop cleanly"
start_daemon
[ "$(field data connected)" = true ] || fail "a clean stop disconnected the device"
blockctl volume detach data >/dev/null || fail detach
[ ! -e /sys/block/nbd0/pid ] || fail "the device is still connected"
stop_daemon TERM
start_daemon
[ -z "$(field data device)" ] || fail "a detached volume is attached"
blockctl volume delete data >/dev/null || fail delete
check_kernel_log

. /freeze.sh
[ -z "${VM_LAZY:-}" ] || . /lazy.sh
