# Probes of restore drills: a clone that the kernel mounts, or has as a device, and a daemon that dies during
# one. A boot of its own.
VM_BOOT=3
[ -e /bin/sh ] || ln -s /usr/bin/bash /bin/sh
mkdir -p /etc/blockd
echo 'nobody':x:65534:65534::/:/bin/sh >/etc/passwd
echo "nogroup:x:65534:" >/etc/group
echo "root:x:0:0:root:/:/bin/sh" >>/etc/passwd
cat >/etc/blockd/blockd.toml <<'TEXT'
[drill_probes.mounted]
command = '''
set -e
test "$(id -u)" = 65534
test "$(cat $BLOCKD_DRILL_MOUNT/data/planted)" = good
echo more >>$BLOCKD_DRILL_MOUNT/data/planted
sync
grep -q " $BLOCKD_DRILL_MOUNT ext4 rw,nosuid,nodev" /proc/mounts
! touch /mnt/forbidden 2>/dev/null
echo "$BLOCKD_DRILL_VOLUME is usable"
'''
[drill_probes.device]
access = "device"
command = '''
set -e
dd if=/dev/urandom of=/tmp/random bs=64k count=4 2>/dev/null
dd if=/tmp/random of=$BLOCKD_DRILL_DEVICE bs=64k seek=16 oflag=direct 2>/dev/null
dd if=$BLOCKD_DRILL_DEVICE of=/tmp/read bs=64k skip=16 count=4 iflag=direct 2>/dev/null
cmp /tmp/random /tmp/read
test ! -r /dev/nbd0
echo written and read
'''
[drill_probes.both]
command = '''
set -e
cd $BLOCKD_DRILL_DIR
test "$(cat base/planted log/planted | tr '\n' ' ')" = "base log "
cp base/planted log/copied
sync
grep -q " $BLOCKD_DRILL_DIR/base ext4 rw,nosuid,nodev" /proc/mounts
echo both are mounted
'''
[drill_probes.fault]
command = "echo planted fault; exit 5"
[drill_probes.slow]
command = "test -e /flag || sleep 4242; true"
TEXT

is_free() { ! ls /sys/block/nbd*/pid >/dev/null 2>&1; }
sleeps() { grep -qas '[s]leep.4242' /proc/[0-9]*/cmdline; }
sleeps_no_more() { ! sleeps; }
drill() { blockctl cloudsnap drill run origin@latest --probe "$1" --wait; }

step "a filesystem is backed up"
insmod /nbd.ko || fail "insmod nbd.ko"
start_daemon
blockctl credentials create here --provider local --path /store >/dev/null || fail credentials
blockctl volume create origin --size 64MiB >/dev/null || fail create
blockctl volume attach origin >/dev/null || fail attach
mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt || fail mount
mkdir /mnt/data && echo good >/mnt/data/planted && chown -R 65534:65534 /mnt/data || fail files
# The backup of a mounted filesystem has a journal to replay.
sync
blockctl cloudsnap backup origin --wait >/dev/null || fail backup
umount /mnt && blockctl volume detach origin >/dev/null || fail detach

step "probes use the mounted clone and the device"
for _ in 1 2; do
    drill mounted >/tmp/output 2>&1 || fail "mounted: $(cat /tmp/output)"
    is_free || fail "the device is left"
done
drill device >/tmp/output 2>&1 || fail "device: $(cat /tmp/output)"
is_free || fail "the device is left"
[ -z "$(ls -d /data/drill* 2>/dev/null)" ] || fail "files are left: $(ls /data)"
blockctl --json cloudsnap drill list origin | tr -d ' \n' >/tmp/output
grep -q '"note":"mounted:originisusable"' /tmp/output || fail "no note of the probe: $(cat /tmp/output)"
grep -q '"probedMillis":[0-9]' /tmp/output || fail "no time of the probe: $(cat /tmp/output)"
refused "failed at step probe: probe fault failed: exit status 5: planted fault" drill fault
is_free || fail "the device is left"

step "a probe uses the mounted clones of a group"
for name in base log; do
    blockctl volume create $name --size 64MiB --group db >/dev/null || fail create
    blockctl volume attach $name >/dev/null || fail attach
    mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt || fail mount
    echo $name >/mnt/planted && chmod 777 /mnt || fail files
    umount /mnt && blockctl volume detach $name >/dev/null || fail detach
done
blockctl cloudsnap backup-group db --wait >/dev/null || fail backup
for _ in 1 2; do
    blockctl cloudsnap drill run --group db --probe both --wait >/tmp/output 2>&1 || fail "both: $(cat /tmp/output)"
    is_free || fail "a device is left"
done
for name in base log; do
    blockctl --json cloudsnap drill list $name | tr -d ' \n' >/tmp/output
    grep -q '"note":"both:botharemounted"' /tmp/output || fail "no note of the probe: $(cat /tmp/output)"
done
refused "failed at step probe: probe fault failed: exit status 5: planted fault" \
    blockctl cloudsnap drill run --group db --probe fault --wait

step "XFS is checked"
blockctl volume create xfs --size 320MiB >/dev/null || fail create
blockctl volume attach xfs --block-size 512 >/dev/null || fail attach
mkfs.xfs -q /dev/nbd0 && mount -t xfs /dev/nbd0 /mnt || fail mkfs.xfs
echo good >/mnt/planted && sync || fail files
# The log has changes: the check replays them.
blockctl cloudsnap backup xfs --wait >/dev/null || fail backup
umount /mnt
# A lost write: the second block has the free space of the first allocation group.
dd if=/dev/zero of=/dev/nbd0 bs=4096 seek=1 count=1 conv=fsync 2>/dev/null || fail dd
blockctl cloudsnap drill run xfs@latest --wait >/tmp/output 2>&1 || fail "xfs: $(cat /tmp/output)"
blockctl --json cloudsnap drill list xfs | tr -d ' \n' >/tmp/output
grep -q 'xfs_repair-nfoundnoinconsistency' /tmp/output || fail "no check of XFS: $(cat /tmp/output)"
blockctl cloudsnap backup xfs --wait >/dev/null || fail backup
refused "failed at step check: an XFS filesystem: xfs_repair -n failed" blockctl cloudsnap drill run xfs@latest --wait
# Its log on another volume is missing in a drill.
blockctl volume create xlog --size 128MiB >/dev/null || fail create
blockctl volume attach xlog --block-size 512 >/dev/null || fail attach
mkfs.xfs -q -f -l logdev=/dev/nbd1,size=64m /dev/nbd0 || fail "mkfs.xfs with an external log"
blockctl cloudsnap backup xfs --wait >/dev/null || fail backup
blockctl cloudsnap drill run xfs@latest --wait >/tmp/output 2>&1 || fail "external log: $(cat /tmp/output)"
blockctl --json cloudsnap drill list xfs | tr -d ' \n' >/tmp/output
grep -q 'isnotchecked:itcannotbeusedalone' /tmp/output || fail "no note of the log: $(cat /tmp/output)"
blockctl volume detach xlog >/dev/null && blockctl volume detach xfs >/dev/null || fail detach
is_free || fail "a device is left"

step "btrfs is checked"
blockctl volume create btrfs --size 128MiB >/dev/null || fail create
blockctl volume attach btrfs >/dev/null || fail attach
mkfs.btrfs -q -m single /dev/nbd0 >/dev/null 2>&1 || fail mkfs.btrfs
blockctl cloudsnap backup btrfs --wait >/dev/null || fail backup
blockctl cloudsnap drill run btrfs@latest --wait >/tmp/output 2>&1 || fail "btrfs: $(cat /tmp/output)"
blockctl --json cloudsnap drill list btrfs | tr -d ' \n' >/tmp/output
grep -q 'btrfscheck--readonlyfoundnoinconsistency' /tmp/output || fail "no check of btrfs: $(cat /tmp/output)"
# The trees are lost; the superblock is before them.
dd if=/dev/zero of=/dev/nbd0 bs=1M seek=1 count=60 conv=fsync 2>/dev/null || fail dd
blockctl cloudsnap backup btrfs --wait >/dev/null || fail backup
refused "failed at step check: a btrfs filesystem: btrfs check --readonly failed" blockctl cloudsnap drill run btrfs@latest --wait
blockctl volume detach btrfs >/dev/null || fail detach
is_free || fail "a device is left"

step "the daemon dies during a probe"
blockctl cloudsnap drill run origin@latest --probe slow >/dev/null || fail "slow"
becomes_true sleeps || fail "the probe does not run"
is_free && fail "the clone is not attached"
stop_daemon KILL
becomes_true sleeps_no_more || fail "the probe outlives the daemon"
: >/flag
start_daemon
is_passed() { blockctl --json cloudsnap drill list origin | tr -d ' \n' | grep -q '"note":"slow"'; }
becomes_true is_passed || fail "the drill was not made again"
becomes_true is_free || fail "the device of the dead daemon is left"
stop_daemon TERM || fail "the daemon did not stop cleanly"
