#!/bin/sh
# ceph.sh start|stop|env [DIR]: a real S3 server on 127.0.0.1 for the tests.
#
# Ceph: one monitor, one OSD on a sparse file, one RADOS gateway; no systemd, no manager, no
# keyrings. All state lies under DIR (default ${OBJBLK_LAB:-/tmp/objblk-lab}/ceph). `start` leaves
# a running server alone; where one of the three is not running it begins anew, with nothing in
# the store (what an earlier run left may be full or broken), waits until a bucket can be created,
# and prints what `env` prints:
#
#   eval "$(scripts/s3/ceph.sh start)"
#
# sets AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL.
#
# Environment: CEPH_PORT (7480) and CEPH_MON_PORT (6789), so that two servers can coexist;
# CEPH_SIZE, the OSD's size in bytes (10 GiB, sparse). They count when DIR is first made.
set -eu

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
die() {
  echo "ceph.sh: $*" >&2
  exit 1
}

DIR=${2:-${OBJBLK_LAB:-/tmp/objblk-lab}/ceph}
case $DIR in /*) ;; *) DIR=$PWD/$DIR ;; esac
CONF=$DIR/ceph.conf
ACCESS_KEY=objblktestkey
SECRET_KEY=objblktestsecret0123456789
REGION=us-east-1

# alive NAME PROGRAM: does DIR/run/NAME.pid name a living PROGRAM that runs on our configuration?
alive() {
  [ -s "$DIR/run/$1.pid" ] || return 1
  p=$(cat "$DIR/run/$1.pid")
  [ -r "/proc/$p/cmdline" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" | grep -q -- "$2.* $CONF "
}

listens() {
  grep -q "$(printf '0100007F:%04X 00000000:0000 0A' "$1")" /proc/net/tcp
}

print_env() {
  [ -s "$DIR/port" ] || die "there is no server in $DIR; run: $0 start $DIR"
  echo "export AWS_ACCESS_KEY_ID=$ACCESS_KEY"
  echo "export AWS_SECRET_ACCESS_KEY=$SECRET_KEY"
  echo "export AWS_REGION=$REGION"
  echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$(cat "$DIR/port")"
}

install_packages() {
  missing=
  for pair in ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph:ceph-common \
    curl:curl openssl:openssl flock:util-linux; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
  done
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || die "install these packages first:$missing"
  [ "$(id -u)" = 0 ] || die "run as root, or first: apt-get install -y --no-install-recommends$missing"
  echo "ceph.sh: installing$missing" >&2
  {
    apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
  } >"$DIR/log/apt.log" 2>&1 || die "apt-get could not install$missing; see $DIR/log/apt.log"
}

write_conf() {
  port=${CEPH_PORT:-7480}
  mon=${CEPH_MON_PORT:-6789}
  for used in "$port" "$mon"; do
    if listens "$used"; then
      die "port $used of 127.0.0.1 is in use by another program; set CEPH_PORT and CEPH_MON_PORT"
    fi
  done
  cat >"$CONF.new" <<X
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$mon/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
pid file = $DIR/run/\$type.pid
run dir = $DIR/run
admin socket = $DIR/run/\$name.asok
log file = $DIR/log/\$name.log
crash dir = $DIR/crash
keyring = $DIR/keyring
debug rgw = 0/5
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
[mon]
mon data = $DIR/mon
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.05
paxos min wait = 0.02
[osd]
osd data = $DIR/osd
osd objectstore = bluestore
osd memory target = 939524096
osd class update on start = false
bluestore block size = ${CEPH_SIZE:-10737418240}
bluestore fsck on mount = false
[client.rgw]
rgw data = $DIR/rgw
rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
rgw gc obj min wait = 60
rgw gc processor period = 60
rgw thread pool size = 64
rgw enable usage log = false
rgw enable ops log = false
rgw run sync thread = false
X
  echo "$port" >"$DIR/port"
  mv "$CONF.new" "$CONF"
}

start_mon() {
  mkdir -p "$DIR/mon"
  fsid=$(sed -n 's/^fsid = //p' "$CONF")
  host=$(sed -n 's/^mon host = //p' "$CONF")
  monmaptool --create --clobber --fsid "$fsid" --addv a "$host" "$DIR/monmap"
  ceph-mon -c "$CONF" --mkfs -i a --monmap "$DIR/monmap"
  ceph-mon -i a -c "$CONF"
}

start_osd() {
  mkdir -p "$DIR/osd"
  uuid=$(cat /proc/sys/kernel/random/uuid)
  ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$uuid" --no-mon-config
  # One client for all of it: the OSD's number, and the gateway's pools before it needs them.
  {
    echo "osd new $uuid 0"
    for pool in .rgw.root default.rgw.log default.rgw.control default.rgw.meta \
      default.rgw.buckets.index default.rgw.buckets.data default.rgw.buckets.non-ec; do
      echo "osd pool create $pool 8"
      echo "osd pool application enable $pool rgw"
    done
  } | ceph -c "$CONF" --connect-timeout 30
  ceph-osd -i 0 -c "$CONF"
}

start_gateway() {
  radosgw -n client.rgw -c "$CONF"
  tries=0
  until listens "$(cat "$DIR/port")"; do
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || die "the gateway did not come up; see $DIR/log"
    sleep 0.1
  done
  radosgw-admin -c "$CONF" user create --uid=objblk --display-name=objblk --max-buckets=0 \
    --access-key="$ACCESS_KEY" --secret-key="$SECRET_KEY"
}

# Creates (again) the bucket objblk-ready with a signature of version 2, which a shell can make.
create_bucket() {
  date=$(LC_ALL=C TZ=GMT date '+%a, %d %b %Y %H:%M:%S GMT')
  signature=$(printf 'PUT\n\n\n%s\n/objblk-ready' "$date" |
    openssl dgst -sha1 -hmac "$SECRET_KEY" -binary | base64)
  curl -sf --noproxy '*' -m 10 -o /dev/null -X PUT -H "Date: $date" \
    -H "Authorization: AWS $ACCESS_KEY:$signature" \
    "http://127.0.0.1:$(cat "$DIR/port")/objblk-ready"
}

wait_ready() {
  tries=0
  until create_bucket; do
    tries=$((tries + 1))
    [ $tries -lt 240 ] || die "no bucket can be created; see $DIR/log"
    sleep 0.5
  done
}

running() {
  alive mon ceph-mon && alive osd ceph-osd && alive client radosgw
}

lock() {
  exec 9>"$DIR/lock"
  flock -w 300 9 || die "another start or stop holds $DIR/lock for more than 300 s"
}

start() {
  mkdir -p "$DIR/run" "$DIR/log"
  [ "${#DIR}" -le 80 ] || die "$DIR is too long a path for the servers' sockets"
  install_packages
  lock
  if ! running; then
    stop_daemons
    (cd "$DIR" && rm -rf mon osd rgw crash log run)
    mkdir -p "$DIR/run" "$DIR/log" "$DIR/rgw" "$DIR/crash"
    : >>"$DIR/keyring"
    [ -s "$CONF" ] || write_conf
    # The daemons must not inherit the lock (9) nor the caller's pipes.
    {
      start_mon && start_osd && start_gateway
    } </dev/null >>"$DIR/log/start.log" 2>&1 9>&- || {
      tail -n 20 "$DIR/log/start.log" >&2
      die "the server did not start; see $DIR/log/start.log"
    }
  fi
  wait_ready
  print_env
}

# The gateway goes before the store under it; only processes recorded here are ended.
stop_daemons() {
  for pair in client:radosgw osd:ceph-osd mon:ceph-mon; do
    name=${pair%%:*}
    if alive "$name" "${pair##*:}"; then
      p=$(cat "$DIR/run/$name.pid")
      kill "$p"
      tries=0
      while grep -q '^State:.[^ZX]' "/proc/$p/status" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -ne 150 ] || kill -9 "$p"
        sleep 0.1
      done
    fi
    rm -f "$DIR/run/$name.pid"
  done
}

stop() {
  [ -d "$DIR/run" ] || exit 0
  lock
  stop_daemons
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  env) print_env ;;
  *) usage ;;
esac
