# A volume that is restored lazily is mounted and used while it hydrates, and the daemon dies meanwhile. Comes after freeze.sh in
# the same boot, with what that leaves: a volume with a filesystem that is not attached, a credential, and no daemon.
FILES=24
# Larger than one fetch, so that a file comes in several.
FILE_MIB=2

# digests DIR: of the files
digests() { (cd "$1" && for number in $(seq $FILES); do md5sum "file-$number"; done); }

# pieces DIR SKIP: of 64 KiB of each file. So far from each other and past the page cache, they are not taken for reading in
# order, which would fetch everything long before the hydration does.
pieces() {
    for number in $(seq $FILES); do
        dd if="$1/file-$number" bs=64k skip="$2" count=1 iflag=direct 2>/tmp/dd || { cat /tmp/dd >&2; return 1; }
    done | md5sum
}

# forget: what the guest has in memory of the filesystem has to be read again
forget() { sync && echo 3 >/proc/sys/vm/drop_caches; }

# hydration: how far the volume is; nothing when all is there
hydration() {
    inspected=$(blockctl --json volume inspect lazy) || fail "inspect lazy"
    echo "$inspected" | tr -d '\n ' | grep -o '"hydration":{[^}]*}'
}
is_hydrated() { [ -z "$(hydration)" ]; }
hydrated_bytes() { hydration | sed -n 's/.*"doneBytes":\([0-9]*\).*/\1/p'; }

step "files are backed up that will be restored lazily"
mkdir -p /etc/blockd
# The slowest there is: it must not end while the guest looks.
echo "hydration_limit_bytes_per_s = 1048576" >/etc/blockd/blockd.toml
start_daemon
blockctl volume attach first --timeout 2s >/dev/null || fail attach
mount -t ext4 /dev/nbd0 /mnt || fail mount
mkdir /mnt/lazy
for number in $(seq $FILES); do
    dd if=/dev/urandom of=/mnt/lazy/file-$number bs=1M count=$FILE_MIB 2>/dev/null || fail "file $number"
done
digests /mnt/lazy >/sums-lazy
forget
begins=$(pieces /mnt/lazy 0)
middles=$(pieces /mnt/lazy 16)
umount /mnt || fail umount
blockctl cloudsnap backup first --wait >/tmp/backup 2>&1 || fail "backup: $(cat /tmp/backup)"
blockctl volume detach first >/dev/null || fail detach
snap=$(blockctl --json cloudsnap list --src first | tr -d '\n ' | grep -o '"ID":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)

step "a lazy volume is mounted while it hydrates"
blockctl cloudsnap restore --snap "$snap" --volume lazy --lazy >/tmp/restore 2>&1 || fail "restore: $(cat /tmp/restore)"
blockctl volume attach lazy --persistent --timeout 2s --device /dev/nbd0 >/dev/null || fail "attach lazy"
mount -t ext4 /dev/nbd0 /mnt || fail "mount lazy"
is_hydrated && fail "it is hydrated before the first check"
load 4M 1 &
load=$!
[ "$(pieces /mnt/lazy 0)" = "$begins" ] || fail "files differ while it hydrates"
is_hydrated && fail "it hydrated too soon"
echo "read from each file, hydrated $(hydrated_bytes) bytes"

step "the daemon dies while a lazy volume hydrates under load"
kill -0 $load 2>/dev/null || fail "the load ended too early: $(cat /fio.out)"
# This reader waits for the daemon that dies, and for the next one.
pieces /mnt/lazy 16 >/tmp/middles &
reading=$!
stop_daemon KILL
start_daemon
# It goes on as slowly as before.
is_hydrated && fail "it is hydrated right after the start"
wait $reading || fail "files cannot be read"
[ "$(cat /tmp/middles)" = "$middles" ] || fail "files differ after the daemon died"
is_hydrated && fail "it hydrated before it was released"
echo "hydrated $(hydrated_bytes) bytes after the daemon's end"

step "whole files are read while it hydrates as fast as it can"
kill -0 $load 2>/dev/null || fail "the load ended too early: $(cat /fio.out)"
forget
digests /mnt/lazy >/tmp/whole &
reading=$!
: >/etc/blockd/blockd.toml
stop_daemon TERM || fail "the daemon did not stop cleanly"
start_daemon
wait $reading || fail "files cannot be read"
[ "$(cat /tmp/whole)" = "$(cat /sums-lazy)" ] || fail "files differ while it hydrates fast"
end_load $load || fail "fio: $(cat /fio.out)"
written=$(md5sum /mnt/load.0.0)
check_kernel_log

step "it is hydrated, and needs its store no more"
becomes_true is_hydrated || fail "it does not hydrate: $(blockctl --json volume inspect lazy; blockctl cloudsnap status)"
mv /store /store-away || fail mv
forget
[ "$(digests /mnt/lazy)" = "$(cat /sums-lazy)" ] || fail "files differ when it is hydrated"
[ "$(md5sum /mnt/load.0.0)" = "$written" ] || fail "what was written meanwhile differs"
umount /mnt || fail umount
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"
blockctl volume detach lazy >/dev/null || fail "detach lazy"
mv /store-away /store
blockctl volume delete lazy >/dev/null || fail "delete lazy"
stop_daemon TERM || fail "the daemon did not stop cleanly"
check_kernel_log
