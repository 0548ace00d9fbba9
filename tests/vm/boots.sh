#!/bin/bash
# A host that attaches and mounts a volume when it boots, by systemd with the units, rules and fstab of examples/,
# and that shuts down in order. Runs as root in a guest that may be thrown away: the host is a container with a
# systemd of its own. objblk, udevadm and examples/ are in the payload. Prints one line a check; exits 1 where
# one failed.
set -u
# Not in /tmp, which a host that boots makes empty.
T=$(mktemp -d /var/lib/boots.XXXXXX)
H=/tmp/payload
fails=0
export OBJBLK_STORE=file:///var/lib/pool
ok() { echo "ok    $*"; }
fail() { fails=$((fails + 1)); echo "FAIL  $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1: $2"; else fail "$1: $2, wanted $3"; fi; }
run() { what=$1; shift; if "$@" >"$T/run" 2>&1; then ok "$what"; else fail "$what: $*: $(tail -3 "$T/run" | tr '\n' ' ')"; fi; }

# In the container: its processes, its mounts.
inside() { nsenter -t "$host" -p -m -r "$@"; }
# until WHAT SECONDS COMMAND...
until_true() {
    local what=$1 left=$2
    shift 2
    while ! "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { fail "$what: not in time"; return 1; }
        sleep 1
    done
    ok "$what"
}

install_all() {
    install -m 755 $H/objblk /usr/local/bin/objblk
    install -m 755 $H/udevadm /usr/lib/systemd/systemd-udevd
    mkdir -p /etc/udev/rules.d /etc/objblk /srv/data /var/lib/pool
    cp $H/examples/90-objblk.rules /etc/udev/rules.d/
    cp "$H/examples/objblk@.service" /etc/systemd/system/
    cp $H/examples/fstab /etc/fstab
    echo "store = \"$OBJBLK_STORE\"" >/etc/objblk/config.toml
    # What a host has besides: udev, and a network whose end is noted.
    cat >/etc/systemd/system/systemd-udevd.service <<-U
	[Unit]
	DefaultDependencies=no
	Before=sysinit.target
	[Service]
	Type=notify
	ExecStart=/usr/lib/systemd/systemd-udevd --resolve-names=never
	U
    cat >/etc/systemd/system/net.service <<-U
	[Unit]
	Wants=network.target network-online.target
	Before=network.target network-online.target
	[Service]
	Type=oneshot
	RemainAfterExit=yes
	ExecStart=true
	ExecStop=sh -c 'objblk list --json >/var/lib/at-the-end; grep srv/data /proc/self/mounts >/var/lib/mounted-at-the-end; true'
	U
    cat >/etc/systemd/system/host.target <<-U
	[Unit]
	Requires=systemd-udevd.service net.service basic.target remote-fs.target
	After=basic.target remote-fs.target
	AllowIsolate=yes
	U
    # One console, no logins, no journal on a disk.
    systemctl mask --quiet getty.target systemd-logind.service systemd-journald.service \
        systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \
        modprobe@ublk_drv.service
}

boot() {
    local begin=$SECONDS
    rm -f /var/lib/at-the-end /var/lib/mounted-at-the-end
    container=objblk-test unshare --fork --pid --mount --mount-proc --propagation private \
        /lib/systemd/systemd --system --unit=host.target --log-target=console --show-status=no \
        >"$T/console" 2>&1 &
    until_true "the host starts" 60 pgrep -x systemd
    host=$(pgrep -x systemd | head -1)
    until_true "the file system of the volume is mounted" 150 inside findmnt -n /srv/data ||
        { tail -30 "$T/console"; inside systemctl --no-pager --failed 2>&1 | tail; inside systemctl --no-pager list-jobs | tail; }
    echo "      $((SECONDS - begin)) s"
    is "the volume is" "$(state)" in-use
    is "its unit" "$(inside systemctl is-active objblk@data.service)" active
}

state() { inside objblk list --json | sed -n 's/.*"state": *"\([^"]*\)".*/\1/p' | head -1; }

shut_down() {
    local begin=$SECONDS
    inside systemctl poweroff 2>/dev/null
    until_true "the host ends" 150 sh -c "! kill -0 $host" || { tail -30 "$T/console"; inside systemctl --no-pager list-jobs; }
    wait
    echo "      $((SECONDS - begin)) s"
    # When the network went nothing was mounted any more, and nobody had the volume.
    run "the end of the network was seen" test -e /var/lib/at-the-end
    is "mounted when the network went" "$(cat /var/lib/mounted-at-the-end 2>&1)" ""
    is "the volume when the network went" "$(sed -n 's/.*"state": *"\([^"]*\)".*/\1/p' /var/lib/at-the-end | head -1)" free
    is "devices left" "$(ls -d /sys/block/ublkb* 2>/dev/null)" ""
}

mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
install_all
run "a volume" objblk create data --size 1G
dev=$(objblk attach data) || fail "attach"
run "a file system" mkfs.ext4 -q "$dev"
run "detach" objblk detach data

boot
# Not synced: the end of the host does that.
run "a file" sh -c "head -c 5000000 /dev/urandom >$T/file"
run "a file on the volume" inside sh -c "cat >/srv/data/file" <"$T/file"
shut_down
boot
run "what was written is there" sh -c "nsenter -t $host -m -r cat /srv/data/file | cmp - $T/file"
shut_down
[ $fails = 0 ]
