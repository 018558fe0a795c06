#!/bin/busybox sh
# The guest's init: mounts the disk and runs a script from it. The script loads nbd.ko.
# The scripts run in bash: busybox's shell prefers its own mke2fs to that of the disk.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do
    [ "$module" = nbd.ko ] || insmod "/lib/$module" || echo "VM-FAILED: insmod $module"
done
mount -t ext4 /dev/vda /disk || echo "VM-FAILED: mount failed on /dev/vda"
for dir in dev proc sys; do mount --bind "/$dir" "/disk/$dir"; done
chroot /disk /bin/busybox --install -s /busybox
script=
for word in $(cat /proc/cmdline); do
    case "$word" in
        blockd.script=*) script=${word#blockd.script=} ;;
        VM_*=*) export "$word" ;;
    esac
done
PATH=/usr/bin:/usr/sbin:/busybox chroot /disk /usr/bin/bash -c ". /lib.sh; . /$script.sh; finish"
echo "VM-FAILED: the script ended with $?"
sync
poweroff -f
