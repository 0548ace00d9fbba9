# What a guest is given to run; read by the run.sh of scripts/vm and scripts/uml.
#
# The arrays `payload` (files and directories) and `environment` (NAME=VALUE), and `script`, a host script or
# nothing, are the caller's. The guest sees the directory as /tmp/payload and runs `sh .command`.
# shellcheck shell=bash disable=SC2154

# A word as the guest's sh reads it back.
quote() { printf "'%s' " "${1//\'/\'\\\'\'}"; }

# fill_payload DIR ARG...: ARGs are those of the script, or the command without one.
fill_payload() {
    local dir=$1 item name
    shift
    mkdir "$dir"
    for item in ${payload[@]+"${payload[@]}"}; do cp -RL --preserve=mode,timestamps "$item" "$dir/"; done
    {
        echo 'cd /tmp/payload'
        # shellcheck disable=SC2016  # the guest's PATH
        echo 'export PATH=$PATH:/tmp/payload'
        for item in ${environment[@]+"${environment[@]}"}; do
            printf 'export %s=%s\n' "${item%%=*}" "$(quote "${item#*=}")"
        done
        if [ -n "$script" ]; then
            name=${script##*/}
            cp -L "$script" "$dir/$name"
            chmod 755 "$dir/$name"
            set -- "./$name" "$@"
        fi
        printf 'exec '
        for item in "$@"; do quote "$item"; done
        echo
    } >"$dir/.command"
}
