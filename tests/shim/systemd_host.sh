#!/usr/bin/env bash
# Boots systemd on an overlay of this machine's files, with all changes in memory, to install packages:
#   tests/shim/systemd_host.sh DIR STEPS FILE…
# The script STEPS runs there as root, with the FILEs in /tmp; its output is DIR/steps.log. The system ends
# with STEPS. The system cannot change the host: kernel settings, devices and the network are out of its
# reach.
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    # A control group of its own, removed at the end.
    hierarchy=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET)
    ours=$(sed -n 's/^0:://p' /proc/self/cgroup)
    group=$hierarchy${ours%/}/blockd-test-$$
    mkdir "$group"
    leave() {
        echo $$ >"$hierarchy${ours%/}/cgroup.procs"
        find "$group" -depth -type d -exec rmdir {} +
    }
    trap leave EXIT
    echo $$ >"$group/cgroup.procs"
    unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup "$0" --inside "$@"
    exit
fi
dir=$2 steps=$3
shift 3

mount --make-rprivate /
# The upper directory of an overlay cannot be on its lower filesystem.
mount -t tmpfs -o mode=0755 tmpfs "$dir/system"
mkdir "$dir"/system/{changes,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$dir/system/changes,workdir=$dir/system/work" overlay "$dir/system/root"
root=$dir/system/root
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/sys"
mkdir -p "$root"/sys/{block,kernel,fs/cgroup}
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

# Removes the services of this machine, and the policy of containers that forbids packages to start services.
# The removal runs in the new root, where symbolic links cannot lead to the host.
chroot "$root" /bin/bash -c 'rm -rf /{etc,lib,usr/lib}/systemd/system/*.{wants,requires} /etc/systemd/system/*.service.d \
    /{etc,lib,usr/lib}/systemd/system-generators/*; rm -f /usr/sbin/policy-rc.d'
printf '[Service]\nType=oneshot\nExecStart=/bin/true\n' >"$root/etc/systemd/system/modprobe@.service"
cat >"$root/etc/systemd/system/steps.target" <<'UNIT'
[Unit]
DefaultDependencies=no
Wants=steps.service
UNIT
cat >"$root/etc/systemd/system/steps.service" <<'UNIT'
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force

[Service]
Type=oneshot
TimeoutStartSec=15min
Environment=HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/bin/bash -eux -o pipefail /tmp/steps
StandardOutput=append:/tmp/out/steps.log
StandardError=inherit
UNIT
cp "$steps" "$root/tmp/steps"
cp "$@" "$root/tmp/"
mkdir "$root/tmp/out"
mount --bind "$dir" "$root/tmp/out"
hostname blockd-test
cd "$root"
# Without this level the boot logs some 10,000 messages.
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" \
    /lib/systemd/systemd --system --unit=steps.target --log-target=console --log-level=warning --show-status=no
