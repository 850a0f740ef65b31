#!/usr/bin/env bash
# Fuzzes what reads bytes that anybody may have written: each target of fuzz/fuzz_targets for so many seconds.
#
#   scripts/fuzz.sh [SECONDS] [TARGET ...]     60 seconds each, all targets, unless told
#
# Prints executions and findings for each target, and fails if there are findings; their inputs stay in fuzz/artifacts. What was
# learnt stays in fuzz/corpus. Needs a nightly toolchain; cargo-fuzz is installed where it is missing.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "FUZZING NEEDS A NIGHTLY TOOLCHAIN, and there is none: rustup toolchain install nightly" >&2
    echo "Nothing was fuzzed. 'cargo test --test fuzz_smoke' runs the same targets without it." >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz" >&2
    cargo install cargo-fuzz --locked || exit 1
fi

# Of one input: a bomb must not take more memory than this, nor one allocation, nor more time.
limits=(-rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=20)

cargo run --quiet --example fuzz_seeds -- fuzz/corpus >/dev/null || exit 1
built=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
CARGO_TARGET_DIR=$built cargo +nightly fuzz build -O -a || exit 1

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)
found=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# Small files are made and removed in each run of some targets.
export ASAN_OPTIONS=detect_odr_violation=0:allocator_may_return_null=1
printf '%-14s %12s %8s %8s %9s\n' target executions '/s' 'MiB' findings
for target in "${targets[@]}"; do
    binary=$(find "$built" -path "*/release/$target" -type f -perm -u+x | head -1)
    if [ -z "$binary" ]; then
        echo "no target $target" >&2
        exit 2
    fi
    mkdir -p "fuzz/artifacts/$target"
    before=$(find "fuzz/artifacts/$target" -type f | wc -l)
    log=$logs/$target
    (cd fuzz && "$binary" "corpus/$target" "-artifact_prefix=artifacts/$target/" "-max_total_time=$seconds" \
        "${limits[@]}" -print_final_stats=1) >"$log" 2>&1
    status=$?
    findings=$(($(find "fuzz/artifacts/$target" -type f | wc -l) - before))
    [ $status -eq 0 ] || [ $findings -gt 0 ] || findings=1
    found=$((found + findings))
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    printf '%-14s %12s %8s %8s %9s\n' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$(stat peak_rss_mb)" "$findings"
    if [ $findings -gt 0 ]; then
        grep -E -A6 'panicked at|ERROR: |SUMMARY|Test unit written' "$log" | head -30
    fi
done
echo "$found findings in ${#targets[@]} targets of $seconds s each"
[ $found -eq 0 ]
