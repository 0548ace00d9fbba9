#!/usr/bin/env bash
# Fuzz objblk's parsers with libFuzzer, one target after the other, and show a table.
#
# usage: scripts/fuzz.sh [-h] [-t SECONDS] [TARGET...]   (default: 600 seconds each, all targets)
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and a nightly toolchain; without one, stable is told
# to behave as one. A target starts with what it found the last time (kept in OBJBLK_LAB/fuzz) and
# with the corpus of the repository, which is left alone. Crashing inputs are kept in
# OBJBLK_LAB/fuzz/TARGET/crashes and printed as they are found; then the exit code is 1.
# With BUILD_ONLY=1 the fuzzers are built and not run.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly crate=tests/fuzz
readonly state=${OBJBLK_LAB:-/tmp/objblk-lab}/fuzz

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    printf 'fuzz: %s\n' "$*" >&2
    exit 1
}

seconds=600
while getopts ht: option; do
    case $option in
        h)
            usage
            exit 0
            ;;
        t) seconds=$OPTARG ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
done
shift $((OPTIND - 1))

cargo fuzz --version >/dev/null 2>&1 || die 'cargo-fuzz is missing: cargo install cargo-fuzz'
targets=("$@")
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(basename -s .rs -a "$crate"/fuzz_targets/*.rs)
fi

# Coverage is all that is asked of the compiler. The parsers have no unsafe code for a sanitizer.
cargo=(cargo +nightly)
if ! "${cargo[@]}" --version >/dev/null 2>&1; then
    cargo=(env RUSTC_BOOTSTRAP=1 cargo)
fi
readonly flags=(--fuzz-dir "$crate" --sanitizer none)
# The versions that objblk itself is built with.
cp Cargo.lock "$crate/Cargo.lock"

last() { grep -oE "$1" "$2" | tail -n 1 | grep -oE '[0-9]+' | tail -n 1 || echo 0; }

failed=0
rows=()
for target in "${targets[@]}"; do
    [[ -d $crate/corpus/$target ]] || die "there is no target $target"
    "${cargo[@]}" fuzz build "${flags[@]}" "$target" || die "$target cannot be built"
    [[ -z ${BUILD_ONLY-} ]] || continue
    mkdir -p "$state/$target/corpus" "$state/$target/crashes"
    log=$state/$target/log
    result=none
    "${cargo[@]}" fuzz run "${flags[@]}" "$target" "$state/$target/corpus" "$crate/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=128 \
        -print_final_stats=1 -artifact_prefix="$state/$target/crashes/" >"$log" 2>&1 || {
        failed=1
        result="CRASH, see $log"
        tail -n 40 "$log" >&2
    }
    rows+=("$(printf '| %s | %s | %s | %s | %s | %s |' "$target" \
        "$(last 'stat::number_of_executed_units: *[0-9]+' "$log")" \
        "$(last 'stat::average_exec_per_sec: *[0-9]+' "$log")" \
        "$(last ' cov: [0-9]+' "$log")" "$(last ' ft: [0-9]+' "$log")" "$result")")
    printf '%s\n' "${rows[-1]}"
done
((${#rows[@]} == 0)) || {
    printf '\n| target | executions | a second | edges covered | features | findings |\n'
    printf '| --- | --- | --- | --- | --- | --- |\n'
    printf '%s\n' "${rows[@]}"
}
exit "$failed"
