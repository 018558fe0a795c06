#!/usr/bin/env bash
# In-memory Ceph cluster of one monitor and one OSD with its S3 gateway, on loopback.
#
# usage: ceph_gateway.sh DIR BUCKET ACCESS_KEY SECRET_KEY MON_PORT GATEWAY_PORT
#
# Creates DIR/ready when the gateway serves the bucket, and runs until it is killed, with all its processes.
# Requires Debian's radosgw, ceph-mon, ceph-osd, ceph-common and curl.
set -euo pipefail

dir=$1 bucket=$2 access_key=$3 secret_key=$4 mon_port=$5 gateway_port=$6
fsid=6f3b2c1a-5d0e-4b8f-9a77-0c5e1d2f3a4b
osd=2c9e4d77-1b3a-4f6d-8e21-7a9b0c1d2e3f

mkdir -p "$dir"/{mon,osd,run}
cat >"$dir/ceph.conf" <<EOT
[global]
fsid = $fsid
mon host = [v1:127.0.0.1:$mon_port]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
keyring = $dir/keyring
run dir = $dir/run
admin socket =
log file =
log to stderr = true
err to stderr = true
pid file =
mon data = $dir/mon
mon data avail crit = 1
mon data avail warn = 2
debug rocksdb = 0/0
mon cluster log to file = false
mon cluster log to stderr = false
mon allow pool size one = true
mon warn on pool no redundancy = false
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$gateway_port
rgw data = $dir/run
rgw thread pool size = 16
EOT
export CEPH_CONF=$dir/ceph.conf CEPH_ARGS=
: >"$dir/keyring"

# The processes end with this script.
start() { setpriv --pdeathsig KILL "$@" & }

monmaptool --create --fsid $fsid --addv a "[v1:127.0.0.1:$mon_port]" "$dir/monmap"
ceph-mon -i a --mkfs --monmap "$dir/monmap"
start ceph-mon -f -i a
timeout 60 ceph osd new $osd
ceph-osd -i 0 --mkfs --osd-uuid $osd
start ceph-osd -f -i 0
start radosgw -f -n client.rgw.a
timeout 60 radosgw-admin user create --uid=tests --display-name=tests --access-key="$access_key" --secret-key="$secret_key"
curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-connrefused --noproxy '*' --output /dev/null \
    --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --aws-sigv4 aws:amz:us-east-1:s3 --user "$access_key:$secret_key" \
    --request PUT "http://127.0.0.1:$gateway_port/$bucket"
touch "$dir/ready"
wait -n
echo "a process of the cluster ended" >&2
exit 1
