# shellcheck shell=bash
# A QEMU machine whose only disk is a volume; sourced by the scripts of this folder.
#
# From the environment: VM_KERNEL and VM_INITRD (image.sh says what they are), VM_ACCEL (tcg; kvm where there
# is some), VM_MEMORY (192M), VM_APPEND (more words for the kernel's command line).
#
# The machine's console is on standard output. Its kernel comes from QEMU; all else is on the volume.

# serve DOOR VOLUME DIR: serves the volume through `vhost-user` or `nbd`; sets `server`, its process, and `at`,
# where it is.
serve() {
    local socket=$3/$2.$1
    # Not a process substitution: the server is to be waited for.
    mkfifo "$socket.ready"
    # Not with Ctrl-C: it is told by `leave`, once, when the machine has ended.
    setsid objblk serve "$1" "$2" --socket "$socket" >"$socket.ready" &
    server=$!
    at=''
    read -r at <"$socket.ready" || true
    rm "$socket.ready"
    [ -n "$at" ] || { echo "$0: $2 is not served" >&2; return 1; }
}

# leave: ends the server in order: the store has everything then.
leave() {
    kill -TERM "$server"
    wait "$server"
}

# An emulated guest has this host's TSC. One that is starved while it boots measures it wrong, and its clock
# then runs at some other speed. Only a virtual machine knows the rate of its TSC: its /proc/cpuinfo has it.
clock_rate() {
    [ "${VM_ACCEL:-tcg}" = tcg ] && grep -qw hypervisor /proc/cpuinfo || return 0
    sed -n 's/^cpu MHz[^0-9]*\([0-9]*\)\.\([0-9]\{3\}\)$/tsc_early_khz=\1\2/p;T;q' /proc/cpuinfo
}

# machine DOOR AT WORDS [OPTION...]: sets `qemu`, the command line of a machine whose disk is served there.
# WORDS are for its init.
machine() {
    local door=$1 at=$2 words=$3 memory=${VM_MEMORY:-192M}
    shift 3
    qemu=(
        qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -serial stdio
        -machine "q35,accel=${VM_ACCEL:-tcg},memory-backend=memory" -cpu max -m "$memory"
        -object "memory-backend-memfd,id=memory,size=$memory,share=on"
        -kernel "$VM_KERNEL" -initrd "$VM_INITRD"
        -append "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable nokaslr mitigations=off $(clock_rate) ${VM_APPEND:-} $words"
    )
    case $door in
        # The guest's memory is shared with the server; QEMU looks for the next one once a second.
        vhost-user) qemu+=(-chardev "socket,id=disk,path=$at,reconnect=1" -device vhost-user-blk-pci,chardev=disk) ;;
        nbd) qemu+=(-drive "file=$at,format=raw,if=none,id=disk,discard=unmap" -device virtio-blk-pci,drive=disk) ;;
    esac
    qemu+=("$@")
}
