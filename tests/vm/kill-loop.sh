#!/bin/bash
# The target of a mounted file system dies by kill -9, again and again; its host lives on. Runs as root in
# a guest; objblk and its environment are set, ledger.py and crash-lib.sh lie beside it.
#
# usage: kill-loop.sh (ext4|xfs MS...)...
#
# For each MS: load, and MS after its first acknowledgement the kill; the device has to go, the file
# system to let itself be unmounted, and no task may be stuck. Then the volume is taken over, and
# recovered as after any crash (see recover_fs). The volumes are `ext4` and `xfs`. Prints the lines of
# crash-lib.sh and ledger.py, `killed` after each kill, and `done`.
cd /tmp/payload || exit 1
# shellcheck source=tests/vm/crash-lib.sh
. ./crash-lib.sh || exit 1

begin() {
    fs=$1
    attach "$fs" || exit 1
    mkdir -p "$T/$fs"
    make_fs "$fs" "$dev" && run "mount of $fs" mount "$dev" "$T/$fs" || exit 1
    rounds=0
}

end() {
    run "umount of $fs" umount "$T/$fs"
    run "detach of $fs" objblk detach "$fs"
    gone "detach of $fs" "$dev"
    nothing_left "the end of $fs"
}

round() {
    local pid
    start_load "$fs" "$T/$fs" || exit 1
    sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"
    pid=$(target_of "$fs")
    run "kill -9 of the target $pid" kill -9 "$pid" || exit 1
    echo "killed"
    load_ends || exit 1
    run "umount of a dead $fs" umount "$T/$fs"
    gone "kill -9" "$dev"
    none_stuck "kill -9"
    rounds=$((rounds + 1))
    # What the kernel keeps of the device is removed by a detach, or else by the next attach.
    if [ $((rounds % 2)) = 0 ]; then
        run "detach of a dead $fs" objblk detach "$fs"
        nothing_left "detach of a dead $fs"
    fi
    attach "$fs" --takeover || exit 1
    [ "$(find /dev -maxdepth 1 -name 'ublk[bc]*' | wc -l)" = 2 ] || fail "devices left beside $dev: $(ls -d /dev/ublk[bc]*)"
    recover_fs "$fs" "$fs" "$dev" "$T/$fs" || exit 1
}

fs=''
for word in "$@"; do
    case $word in
        ext4 | xfs)
            [ -z "$fs" ] || end
            begin "$word"
            ;;
        *) round "$word" ;;
    esac
done
end
echo "done"
