# A lazy volume is mounted and used while it hydrates and the daemon dies. Runs after freeze.sh in the same
# boot: the volume `first` has a filesystem and is detached, a credential exists, no daemon runs.
FILES=24
# Larger than one fetch, so that each file needs several.
FILE_MIB=2

# digests DIR: prints the digests of the files
digests() { (cd "$1" && for number in $(seq $FILES); do md5sum "file-$number"; done); }

# digest_parts DIR SKIP: prints the digest of 64 KiB of each file. Distant reads past the page cache cause no
# readahead, which would fetch the whole volume before the hydration.
digest_parts() {
    for number in $(seq $FILES); do
        dd if="$1/file-$number" bs=64k skip="$2" count=1 iflag=direct 2>/tmp/dd || { cat /tmp/dd >&2; return 1; }
    done | md5sum
}

# drop_caches: makes the guest read files from the device again
drop_caches() { sync && echo 3 >/proc/sys/vm/drop_caches; }

# hydration: prints the progress; nothing for a hydrated volume
hydration() {
    inspected=$(blockctl --json volume inspect lazy) || fail "inspect lazy"
    echo "$inspected" | tr -d '\n ' | grep -o '"hydration":{[^}]*}'
}
is_hydrated() { [ -z "$(hydration)" ]; }
hydrated_bytes() { hydration | sed -n 's/.*"doneBytes":\([0-9]*\).*/\1/p'; }

step "files for a lazy restore are backed up"
mkdir -p /etc/blockd
# The lowest rate: the hydration must not end during the checks.
echo "hydration_limit_bytes_per_s = 1048576" >/etc/blockd/blockd.toml
start_daemon
blockctl volume attach first --timeout 2s >/dev/null || fail attach
mount -t ext4 /dev/nbd0 /mnt || fail mount
mkdir /mnt/lazy
for number in $(seq $FILES); do
    dd if=/dev/urandom of=/mnt/lazy/file-$number bs=1M count=$FILE_MIB 2>/dev/null || fail "file $number"
done
digests /mnt/lazy >/sums-lazy
drop_caches
first_parts=$(digest_parts /mnt/lazy 0)
middle_parts=$(digest_parts /mnt/lazy 16)
umount /mnt || fail umount
blockctl cloudsnap backup first --wait >/tmp/backup 2>&1 || fail "backup: $(cat /tmp/backup)"
blockctl volume detach first >/dev/null || fail detach
snap=$(blockctl --json cloudsnap list --src first | tr -d '\n ' | grep -o '"cloudSnapshotId":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)

step "a lazy volume is mounted while it hydrates"
blockctl cloudsnap restore --snap "$snap" --volume lazy --lazy >/tmp/restore 2>&1 || fail "restore: $(cat /tmp/restore)"
blockctl volume attach lazy --persistent --timeout 2s --device /dev/nbd0 >/dev/null || fail "attach lazy"
mount -t ext4 /dev/nbd0 /mnt || fail "mount lazy"
is_hydrated && fail "the volume is hydrated before the first check"
load 4M 1 &
load=$!
[ "$(digest_parts /mnt/lazy 0)" = "$first_parts" ] || fail "files differ while it hydrates"
is_hydrated && fail "the volume hydrated too soon"
echo "read from each file, hydrated $(hydrated_bytes) bytes"

step "the daemon dies while a lazy volume hydrates under load"
kill -0 $load 2>/dev/null || fail "the load ended too early: $(cat /fio.out)"
# This reader waits for the dying daemon and for the next one.
digest_parts /mnt/lazy 16 >/tmp/middle-parts &
reading=$!
stop_daemon KILL
start_daemon
is_hydrated && fail "the volume is hydrated right after the start"
wait $reading || fail "a read failed"
[ "$(cat /tmp/middle-parts)" = "$middle_parts" ] || fail "files differ after the daemon died"
is_hydrated && fail "the volume hydrated before the limit was removed"
echo "hydrated $(hydrated_bytes) bytes after the daemon's end"

step "whole files are read while the volume hydrates without a limit"
kill -0 $load 2>/dev/null || fail "the load ended too early: $(cat /fio.out)"
drop_caches
digests /mnt/lazy >/tmp/whole &
reading=$!
: >/etc/blockd/blockd.toml
stop_daemon TERM || fail "the daemon did not stop cleanly"
start_daemon
wait $reading || fail "a read failed"
[ "$(cat /tmp/whole)" = "$(cat /sums-lazy)" ] || fail "files differ during the fast hydration"
end_load $load || fail "fio: $(cat /fio.out)"
written=$(md5sum /mnt/load.0.0)
check_kernel_log

step "the hydrated volume needs no store"
becomes_true is_hydrated || fail "timeout while waiting for the hydration: $(blockctl --json volume inspect lazy; blockctl cloudsnap status)"
mv /store /store-away || fail mv
drop_caches
[ "$(digests /mnt/lazy)" = "$(cat /sums-lazy)" ] || fail "files of the hydrated volume differ"
[ "$(md5sum /mnt/load.0.0)" = "$written" ] || fail "data written during the hydration differ"
umount /mnt || fail umount
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"
blockctl volume detach lazy >/dev/null || fail "detach lazy"
mv /store-away /store
blockctl volume delete lazy >/dev/null || fail "delete lazy"
stop_daemon TERM || fail "the daemon did not stop cleanly"
check_kernel_log
