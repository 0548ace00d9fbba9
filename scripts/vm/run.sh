#!/usr/bin/env bash
# Boot a throw-away QEMU guest whose kernel has ublk, run one command in it, return its output and
# exit code.
#
# usage: scripts/vm/run.sh [OPTION...] -- COMMAND [ARG...]
#        scripts/vm/run.sh [OPTION...] -f SCRIPT [-- ARG...]
#
#   -k SERIES      the kernel: 6.12 (default) or 7.2
#   -f SCRIPT      a host script to run; a copy is executed, by its own #! line
#   -p FILE        a file or directory to copy into the guest's payload, again for each one
#   -e NAME=VALUE  a variable in the command's environment, again for each one
#   -F PORT        forward $VM_HOST:PORT of the guest to 127.0.0.1:PORT of this host, again for each one
#   -d FILE[:SIZE] a raw disk (/dev/vda, then /dev/vdb, ...); created sparse if SIZE is given
#   -u SOCKET[,OPTIONS] a disk (/dev/vdX, after those of -d) that a vhost-user backend serves there; QEMU connects
#                  again when the backend dies; OPTIONS of its device, as packed=on; again for each one
#   -m SIZE        the guest's memory (2G)
#   -s COUNT       its processors (2)
#   -t SECONDS     time limit for the boot and the command (300)
#   -S             an interactive shell on the console instead of a command; exit or ^D ends the guest
#   -v             say on stderr how long boot and command took, and show the end of the console
#   -h             this text
#
# The guest's root is this host's root, read-only under a layer in memory: all installed programs are
# there and nothing that the guest writes is left behind, but what it writes to its disks. The command
# runs as root in /tmp/payload, which is also in its PATH. /tmp and /run are empty; home directories
# and everything else of the host's root file system can be read, though not more different files than
# this host lets a process hold open (ulimit -Hn). Nothing but forwarded ports can be reached by
# network. Modules: ublk_drv is loaded, others by modprobe.
#
# exit code: the command's, but for
#   2    wrong usage
#   122  the kernel complained (BUG, Call Trace, hung task) or could not sync at the end; the lines
#        are printed on stderr. Wins over the command's own code.
#   123  the power was cut: kill -USR1 of this script ends QEMU on the spot, as the plug of a real machine
#        does; what the guest had in memory is gone. Ignored until the guest runs.
#   124  the time limit was reached
#   125  the lab itself failed: something is not installed, or the guest died
#
# The first run of each kernel downloads it. State: ${OBJBLK_LAB:-/tmp/objblk-lab}/vm.
# OBJBLK_VM_ACCEL=kvm uses hardware virtualisation where there is some; the default, tcg, needs none.
set -euo pipefail

readonly here=${BASH_SOURCE[0]%/*} lab=${OBJBLK_LAB:-/tmp/objblk-lab}/vm accel=${OBJBLK_VM_ACCEL:-tcg}
readonly guest_gateway=10.0.2.100
readonly rc_usage=2 rc_kernel=122 rc_cut=123 rc_timeout=124 rc_lab=125
readonly complaints='BUG:|Oops|Call Trace:|blocked for more than|Kernel panic|general protection fault'

series=6.12 script='' memory=2G processors=2 limit=300 shell='' verbose=''
payload=() environment=() ports=() disks=() backends=()
# Set on the way: the directory of this run, QEMU's command line, the process of the file server and the
# one that waits for QEMU, whether the power was cut.
run='' qemu=() virtiofsd='' guest='' cut=''

# shellcheck source=scripts/payload.sh
. "$here/../payload.sh"

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
say() { printf 'vm: %s\n' "$*" >&2; }
die() {
    local rc=$1
    say "${@:2}"
    exit "$rc"
}
check_options() {
    local item
    [ -z "$script" ] || [ -r "$script" ] || die $rc_usage "no script $script"
    for item in ${payload[@]+"${payload[@]}"}; do
        [ -e "$item" ] || die $rc_usage "no payload $item"
    done
    for item in ${environment[@]+"${environment[@]}"}; do
        [[ $item =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die $rc_usage "-e takes NAME=VALUE, not '$item'"
    done
    for item in ${backends[@]+"${backends[@]}"}; do
        [ -S "${item%%,*}" ] || die $rc_usage "no socket ${item%%,*}"
    done
    for item in ${ports[@]+"${ports[@]}"}; do
        [[ $item =~ ^[0-9]+$ ]] || die $rc_usage "-F takes a port number, not '$item'"
    done
    [[ $limit =~ ^[0-9]+$ ]] || die $rc_usage "-t takes seconds, not '$limit'"
    case $series in
        6.12 | 7.2) ;;
        *) die $rc_usage "the kernels are 6.12 and 7.2, not '$series'" ;;
    esac
}

check_host() {
    local tool
    for tool in qemu-system-x86_64 socat cpio zstd xz depmod unshare /bin/busybox; do
        command -v "$tool" >/dev/null ||
            die $rc_lab "$tool is not installed; install the lab's tools with: scripts/bootstrap.sh vm"
    done
    [ "$(id -u)" = 0 ] || die $rc_lab "must be root: the guest reads the host's root file system"
}

# Download the kernel and build its initramfs, once; prints the kernel's directory.
prepare() {
    local kernel initrd=$lab/initrd-$series.cpio
    mkdir -p "$lab"
    exec 9>"$lab/lock"
    flock 9
    kernel=$("$here/fetch.sh" "$series") || return
    if [ ! "$initrd" -nt "$here/guest-init" ] || [ ! "$initrd" -nt "$here/mkinitrd.sh" ] ||
        [ ! "$initrd" -nt "$kernel/version" ]; then
        "$here/mkinitrd.sh" "$kernel" "$initrd" || return
    fi
    "$here/fetch.sh" virtiofsd >/dev/null || return
    exec 9>&-
    echo "$kernel"
}

# Create the disk FILE of FILE:SIZE unless it is there; prints FILE.
disk_file() {
    local file=${1%:*}
    [ "$file" = "$1" ] || [ -e "$file" ] || truncate -s "${1##*:}" "$file" ||
        die $rc_usage "cannot create the disk $file of size ${1##*:}"
    [ -f "$file" ] || [ -b "$file" ] || die $rc_usage "no disk $file"
    echo "$file"
}

# The emulated TSC is this host's. A guest that is starved while it boots measures it wrong, and its clock
# then runs many times too fast: all its timeouts are short. Of this host's rate only a virtual machine
# can be sure: its /proc/cpuinfo has that of the TSC, a real one's that of the moment.
clock_rate() {
    local mhz
    [ "$accel" = tcg ] && grep -qw hypervisor /proc/cpuinfo || return 0
    mhz=$(sed -n 's/^cpu MHz[^0-9]*//p;T;q' /proc/cpuinfo)
    [[ ! $mhz =~ ^([0-9]+)\.([0-9]{3})$ ]] || printf ' tsc_early_khz=%s%s' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
}

# Set `qemu`, the guest's command line.
qemu_command() {
    local kernel=$1 image net append port disk i=0
    image=$kernel/vmlinux
    [ -e "$image" ] || image=$kernel/vmlinuz
    net=user,id=net,ipv6=off,restrict=on
    # One process a connection. Without nodelay on both of its ends a small reply waits for an ACK.
    for port in ${ports[@]+"${ports[@]}"}; do
        net+=",guestfwd=tcp:$guest_gateway:$port-cmd:socat -b262144 FD:0,,nodelay TCP:127.0.0.1:$port,,nodelay"
    done
    # A busy host starves the guest's processors; that alone must not look like a kernel bug.
    append="console=ttyS0 quiet loglevel=4 log_buf_len=4M panic=-1 oops=panic mitigations=off nokaslr \
no_timer_check tsc=reliable random.trust_cpu=on watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
    append+=$(clock_rate)
    qemu=(
        qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none
        -pidfile "$run/qemu.pid" -machine "q35,accel=$accel" -cpu max -smp "$processors" -m "$memory"
        -kernel "$image" -initrd "$lab/initrd-$series.cpio"
        -device virtio-rng-pci -netdev "$net" -device "virtio-net-pci,netdev=net,romfile="
        -object "memory-backend-memfd,id=memory,size=$memory,share=on" -numa "node,memdev=memory"
        -chardev "socket,id=share,path=$run/share.sock" -device "vhost-user-fs-pci,chardev=share,tag=share"
        -device virtio-serial-pci
        -chardev "file,id=status,path=$run/status" -device "virtserialport,chardev=status,name=status"
        -chardev "file,id=log,path=$run/log" -device "virtserialport,chardev=log,name=log"
    )
    for disk in ${disks[@]+"${disks[@]}"}; do
        disk=$(disk_file "$disk")
        qemu+=(-drive "if=none,id=disk$i,format=raw,cache=unsafe,file=${disk//,/,,}" -device "virtio-blk-pci,drive=disk$i")
        i=$((i + 1))
    done
    for disk in ${backends[@]+"${backends[@]}"}; do
        qemu+=(-chardev "socket,id=disk$i,path=${disk%%,*},reconnect=1"
            -device "vhost-user-blk-pci,chardev=disk$i,num-queues=$processors${disk#"${disk%%,*}"}")
        i=$((i + 1))
    done
    if [ -n "$shell" ]; then
        qemu+=(-serial mon:stdio -append "$append objblk.shell=1")
    else
        qemu+=(-serial "file:$run/console" -chardev "file,id=out,path=$run/out"
            -device "virtserialport,chardev=out,name=out" -append "$append")
    fi
}

# Serve $run/share to the guest, with the host's root file system at its "root". The mount lies in a
# mount namespace of the server's own: the host never sees it. The server holds each file that the
# guest's cache knows open; without readdirplus, merely listed ones are not among them.
start_virtiofsd() {
    local tries=0
    # shellcheck disable=SC2016  # for the inner shell
    unshare -m sh -c 'mount --bind / "$1/root" && mount -o remount,bind,ro "$1/root" && shift && exec "$@"' \
        sh "$run/share" "$lab/virtiofsd" --socket-path="$run/share.sock" \
        -o source="$run/share",sandbox=chroot,cache=always,no_readdirplus >"$run/virtiofsd.log" 2>&1 &
    virtiofsd=$!
    until [ -S "$run/share.sock" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ] || ! kill -0 "$virtiofsd" 2>/dev/null; then
            cat "$run/virtiofsd.log" >&2
            die $rc_lab "virtiofsd, which serves the guest's files, did not start"
        fi
        sleep 0.05
    done
}

# Run the guest within the time limit, its output going to stdout as it comes.
run_guest() {
    local rc=0 reader
    mkfifo "$run/out"
    # Held open here, so that the reader ends when QEMU has, even where that never opened its end.
    exec 8<>"$run/out"
    cat "$run/out" 8>&- &
    reader=$!
    # In the background, for a signal to end this script at once.
    timeout --foreground -k 5 "$limit" "${qemu[@]}" </dev/null 8>&- &
    guest=$!
    # A cut interrupts the first wait; the second is for the end that it brings about.
    wait "$guest" || rc=$?
    [ -z "$cut" ] || wait "$guest" || rc=$?
    guest=
    exec 8>&-
    wait "$reader" || true
    return "$rc"
}

# Without a word to the guest. QEMU itself is to die, not the `timeout` above it.
cut_power() {
    local pid
    pid=$(cat "$run/qemu.pid" 2>/dev/null) || return 0
    ! kill -KILL "$pid" || cut=1
}

# Print what the guest's kernel complained of, if anything.
kernel_complaints() {
    cat "$run/log" "$run/console" 2>/dev/null | tr -d '\r' | grep -E -A 20 "$complaints" | head -n 120
}

# Turn what the guest left behind into run.sh's exit code.
verdict() {
    local rc=$1 started=$2 code ready trouble=''
    code=$(sed -n 's/^exit //p' "$run/status")
    ready=$(sed -n 's/^ready //p' "$run/status")
    if [ -n "$verbose" ]; then
        tail -n 40 "$run/console" >&2
        say "kernel $series, booted in ${ready:-?} s, all done in $((SECONDS - started)) s, exit code ${code:-none}"
    fi
    if kernel_complaints >"$run/complaints"; then
        trouble=1
        say "the guest's kernel complained:"
        cat "$run/complaints" >&2
    fi
    if grep -q unsynced "$run/status"; then
        trouble=1
        say "sync did not finish within 20 s after the command: some device does not answer"
    fi
    if [ -n "$trouble" ]; then
        die $rc_kernel "the command's own exit code was ${code:-never given}"
    elif [ -n "$cut" ]; then
        exit $rc_cut
    elif [ -n "$code" ]; then
        exit "$code"
    elif [ "$rc" = 124 ]; then
        [ -n "$ready" ] || say "the guest had not booted yet"
        die $rc_timeout "the time limit of $limit s was reached"
    fi
    tail -n 40 "$run/console" >&2 || true
    die $rc_lab "the guest ended without an exit code (qemu: $rc)"
}

# rmdir fails on a mount point: the host's root is never what gets removed.
clean_up() {
    local process
    for process in $guest $virtiofsd; do
        kill "$process" 2>/dev/null || continue
        wait "$process" || true
    done
    rmdir "$run/share/root" && rm -rf --one-file-system "$run"
}

main() {
    local option kernel rc=0 started=$SECONDS
    while getopts k:f:p:e:F:d:u:m:s:t:Svh option; do
        case $option in
            k) series=$OPTARG ;;
            f) script=$OPTARG ;;
            p) payload+=("$OPTARG") ;;
            e) environment+=("$OPTARG") ;;
            F) ports+=("$OPTARG") ;;
            d) disks+=("$OPTARG") ;;
            u) backends+=("$OPTARG") ;;
            m) memory=$OPTARG ;;
            s) processors=$OPTARG ;;
            t) limit=$OPTARG ;;
            S) shell=1 ;;
            v) verbose=1 ;;
            h) usage && exit ;;
            *) exit $rc_usage ;;
        esac
    done
    shift $((OPTIND - 1))
    [ -n "$script$shell" ] || [ $# -gt 0 ] || die $rc_usage "nothing to run; -h shows the usage"
    check_options
    check_host
    kernel=$(prepare) || die $rc_lab "the lab could not be prepared"

    run=$(mktemp -d "$lab/run.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap cut_power USR1
    mkdir -p "$run/share/root"
    : >"$run/status"
    environment=("VM_HOST=$guest_gateway" ${environment[@]+"${environment[@]}"})
    fill_payload "$run/share/payload" "$@"
    qemu_command "$kernel"
    start_virtiofsd
    if [ -n "$shell" ]; then
        "${qemu[@]}"
    else
        run_guest || rc=$?
        verdict "$rc" "$started"
    fi
}

main "$@"
