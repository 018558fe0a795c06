# Steps with the package on a system that systemd runs; started by systemd_host.sh, with one.deb and two.deb
# in /tmp.
# shellcheck shell=bash
cd /tmp || exit
main_pid() { systemctl show --property MainPID --value blockd.service; }
state() { systemctl is-active blockd.socket blockd.service | tr '\n' ' '; }
is() { [ "$1" = "$2" ] || { echo "'$1' instead of '$2'"; exit 1; }; }
until_is() { # until_is WANTED COMMAND…: waits until the command prints WANTED, at most two minutes
    local wanted=$1
    shift
    for _ in $(seq 1200); do
        [ "$("$@" 2>&1)" != "$wanted" ] || return 0
        sleep 0.1
    done
    echo "timeout while waiting for '$wanted': $*"
    exit 1
}

# The log goes to a file, as no journal runs.
mkdir -p /etc/systemd/system/blockd.service.d /srv/backups
printf '[Service]\nStandardError=append:/tmp/out/blockd.log\nReadWritePaths=/srv/backups\n' >/etc/systemd/system/blockd.service.d/test.conf

dpkg --install one.deb
is "$(state)" "inactive inactive "
is "$(systemctl is-enabled blockd.service blockd.socket blockd-attach@.service | tr '\n' ' ')" "disabled disabled disabled "

# A request starts the daemon.
systemctl start blockd.socket
is "$(state)" "active inactive "
blockctl volume create kept --size 64MiB
is "$(state)" "active active "
is "$(stat --format=%U:%a /var/lib/blockd/blockd.sock)" blockd:600
is "$(stat --format=%U /proc/"$(main_pid)")" blockd
is "$(awk '$1 == "NoNewPrivs:" || $1 == "Seccomp:" { printf "%s ", $2 }' /proc/"$(main_pid)"/status)" "1 2 "

is "$(awk '/^Max core file size/ { print $5, $6 }' /proc/"$(main_pid)"/limits)" "0 0"

# Volumes, backups and restores work in the unit's sandbox.
uri=$(blockctl volume uri kept)
nbdcopy --flush /bin/bash "$uri"
chown blockd: /srv/backups
blockctl credentials create here --provider local --path /srv/backups --encryption-passphrase planted
blockctl cloudsnap backup kept --wait
blockctl cloudsnap restore kept --latest --volume restored --wait
nbdcopy "$(blockctl volume uri restored)" restored.img
cmp --bytes="$(stat --format=%s /bin/bash)" restored.img /bin/bash
# Hooks of snapshots work as well, such as those of the examples.
blockctl snapshot create kept --pre-command 'mkdir -m 0700 /run/blockd/hold && mkfifo /run/blockd/hold/pipe' \
    --post-command 'rm -r /run/blockd/hold'
systemctl reload blockd.service
blockctl volume list

# Hooks have no capabilities as any user, so they cannot become root.
no_capabilities() { # no_capabilities [FLAG…]
    is "$(blockctl -j snapshot create kept "$@" --pre-command "awk '/^Cap(Prm|Eff|Amb)/ { print \$2 }' /proc/self/status" |
        jq -r '.quiesce.steps[0].output' | tr '\n' ' ')" "0000000000000000 0000000000000000 0000000000000000  "
    if output=$(blockctl snapshot create kept "$@" --pre-command 'setpriv --reuid 0 --regid 0 --clear-groups id' 2>&1); then exit 1; fi
    [[ $output == *setpriv:* ]]
}
no_capabilities
no_capabilities --user blockd

# Hooks of other users require the package's drop-in and are refused at once without it.
getent passwd postgres || useradd --system postgres
example=/usr/share/doc/blockd/examples/systemd/blockd-rule-users.conf
must_be_refused() {
    if output=$("$@" 2>&1); then exit 1; fi
    [[ $output == *"cannot run commands as user postgres"*"$example"* ]]
}
must_be_refused blockctl rule create pg --pre-command 'id -un' --user postgres --timeout 30s
blockctl rule create pg --pre-command 'id -un' --user blockd --timeout 30s
must_be_refused blockctl rule update pg --user postgres
blockctl rule assign pg --volume kept
is "$(blockctl -j snapshot create kept | jq -r '.quiesce.steps[0].output')" blockd
install -D -m 0644 "$example" /etc/systemd/system/blockd.service.d/rule-users.conf
systemctl daemon-reload
systemctl restart blockd.service
blockctl rule update pg --user postgres --pre-command 'id -un; id -Gn; grep CapEff /proc/self/status'
# Three lines; the last one shows that there are no capabilities.
is "$(blockctl -j snapshot create kept | jq -r '.quiesce.steps[0].output' | tr -s '[:space:]' ' ')" "postgres $(id -Gn postgres) CapEff: 0000000000000000 "
no_capabilities
no_capabilities --user blockd
no_capabilities --user postgres
blockctl rule update pg --pre-command 'sleep 600' --timeout 1s
if output=$(blockctl snapshot create kept 2>&1); then exit 1; fi
[[ $output == *"killed after 1 s"* ]]
# The killed processes may need a moment to end.
until_is "" pgrep --euid postgres
# The daemon reports rules that it cannot run at its start.
rm /etc/systemd/system/blockd.service.d/rule-users.conf
systemctl daemon-reload
systemctl restart blockd.service
# bash -c, as the trace of a function (set -x) would be part of its output.
until_is true bash -c 'blockctl -j rule inspect pg | jq ".problem != null"'
until_is true bash -c "blockctl events | grep -q 'the commands of rule pg cannot be run' && echo true"
must_be_refused blockctl rule assign pg --group shop
blockctl rule unassign pg --volume kept
blockctl rule delete pg

# A restart refuses no client.
before=$(main_pid)
touch /run/blockd/left-by-a-command
systemctl restart blockd.service &
for _ in $(seq 20); do blockctl volume list >/dev/null; done
wait
[ "$(main_pid)" != "$before" ]
[ -e /run/blockd/left-by-a-command ]

# The watchdog replaces a stopped daemon; its timeout is short in this step only.
short=/etc/systemd/system/blockd.service.d/short.conf
printf '[Service]\nWatchdogSec=3s\n' >"$short"
systemctl daemon-reload
systemctl restart blockd.service
before=$(main_pid)
kill -STOP "$before"
until_is true bash -c '[ "$(systemctl show --property NRestarts --value blockd.service)" -ge 1 ] && echo true'
[ "$(main_pid)" != "$before" ]
until_is true bash -c 'blockctl volume list | grep -q kept && echo true'
rm "$short"
systemctl daemon-reload
systemctl restart blockd.service

# An upgrade restarts a running daemon and starts no stopped one.
before=$(main_pid)
dpkg --install two.deb
is "$(state)" "active active "
[ "$(main_pid)" != "$before" ]
blockctl volume list | grep kept
systemctl stop blockd.socket blockd.service
dpkg --install one.deb
is "$(state)" "inactive inactive "

# Enabling the service enables the socket. A removal stops both; a new installation restores the enablement.
systemctl enable blockd.service
is "$(systemctl is-enabled blockd.service blockd.socket | tr '\n' ' ')" "enabled enabled "
systemctl start blockd.service
is "$(state)" "active active "
dpkg --remove blockd
is "$(state)" "inactive inactive "
dpkg --install two.deb
is "$(systemctl is-enabled blockd.service blockd.socket | tr '\n' ' ')" "enabled enabled "
is "$(state)" "inactive inactive "
touch /etc/blockd/purge-data
dpkg --purge blockd
[ ! -e /var/lib/blockd ]
is "$(find /etc/systemd/system -name 'blockd*' ! -path '*/blockd.service.d*')" ""
echo ALL STEPS DONE
