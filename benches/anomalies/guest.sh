# Normal work on ext4 over /dev/nbd0 with two backups a day for VM_DAYS days of the guest's clock, then
# encryption in place at three speeds and a mass deletion, with three normal days after each.
VM_BOOT=1
INTERVAL_S=43200
# A Sunday, at 03:00.
now=1767495600
part=0
alarms=0

work() { perl /work.pl /mnt "$@" || fail "work.pl $*"; }

# backup: sets the clock forward and backs up; succeeds if the backup is an anomaly, and acknowledges it
backup() {
    now=$((now + INTERVAL_S))
    date -s "@$now" >/dev/null
    blockctl cloudsnap backup data --freeze-fs --expires 10d --wait >/tmp/backup 2>&1 || fail "backup: $(cat /tmp/backup)"
    blockctl --json anomaly list >/tmp/anomalies || fail "anomaly list"
    grep -q '"anomalyId"' /tmp/anomalies || return 1
    blockctl anomaly list
    blockctl anomaly acknowledge data >/dev/null || fail "anomaly acknowledge"
}

normal_days() { # normal_days COUNT
    for _ in $(seq $((2 * $1))); do
        work normal "$part" "$part"
        part=$((part + 1))
        if backup; then
            alarms=$((alarms + 1))
            echo "VM-ALARM in part $part of normal work"
        fi
        [ $((part % 4)) != 0 ] || step "day $((part / 2)), $alarms false alarms"
    done
}

# attack NAME KIND ACTION…: makes the change by day, and expects an anomaly of this kind of the next backup
attack() {
    name=$1 kind=$2
    shift 2
    [ $((part % 2)) = 1 ] || { work normal "$part" "$part"; part=$((part + 1)); backup && alarms=$((alarms + 1)); }
    work normal "$part" "$part"
    part=$((part + 1))
    work "$1" "$part" ${2:-}
    if backup && grep -q "\"$kind\"" /tmp/anomalies; then echo "VM-FOUND $name"; else missed="$missed $name"; fi
    work populate "$part"
    backup || true
    normal_days 3
}

insmod /nbd.ko || fail "insmod nbd.ko"
date -s "@$now" >/dev/null
start_daemon
mkdir -p /store
blockctl volume create data --size 1GiB >/dev/null || fail create
blockctl credentials create nas --provider local --path /store >/dev/null 2>&1 || fail credentials
blockctl volume attach data >/dev/null || fail attach
mke2fs -q -t ext4 /dev/nbd0 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt || fail mount
work populate 1
backup && fail "the first backup is an anomaly"
missed=
normal_days "$VM_DAYS"
echo "VM-NORMAL $VM_DAYS days, $((2 * VM_DAYS)) backups, $alarms false alarms"
attack "encryption of 24 MiB between two backups" turned-incompressible encrypt 24
attack "encryption of 60 MiB between two backups" turned-incompressible encrypt 60
attack "encryption of 200 MiB between two backups" turned-incompressible encrypt 200
attack "deletion of two thirds of the files" mass-deletion delete
umount /mnt
[ -z "$missed" ] || fail "not found: $missed"
[ "$alarms" = 0 ] || fail "$alarms false alarms"
stop_daemon TERM
