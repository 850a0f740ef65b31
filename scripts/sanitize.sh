#!/usr/bin/env bash
# Looks for undefined behaviour and data races: the unit tests and those of the codecs with what watches memory and threads.
#
#   scripts/sanitize.sh            everything
#   scripts/sanitize.sh STEP ...   some steps: asan tsan valgrind
#
# asan and tsan need a nightly toolchain, valgrind the Debian package of that name. Nothing is skipped: what a step does not find
# makes it fail. Miri cannot run what this is about: the file mapping, the lease and zstd are calls out of Rust.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export CARGO_TERM_COLOR=never CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=1
target=${CARGO_TARGET_DIR:-$PWD/target}
host=$(rustc -vV | sed -n 's/^host: //p')
failed=()

nightly() {
    cargo +nightly --version >/dev/null 2>&1 && return 0
    echo "THIS NEEDS A NIGHTLY TOOLCHAIN, and there is none: rustup toolchain install nightly" >&2
    return 1
}

# Memory: all that the unit tests and the range readers do. Leaks count.
asan() {
    nightly || return 1
    CARGO_TARGET_DIR=$target/asan RUSTFLAGS='-Zsanitizer=address' ASAN_OPTIONS=detect_odr_violation=0 \
        cargo +nightly test --no-fail-fast --target "$host" --lib --test codec --test fuzz_smoke
}

# Threads: real ones, many readers of many images. The standard library has to be built for it: else its locks are not seen, and all
# that they guard is called a race.
tsan() {
    nightly || return 1
    [ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library" ] || {
        echo "the source of the standard library is missing: rustup +nightly component add rust-src" >&2
        return 1
    }
    CARGO_TARGET_DIR=$target/tsan RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' \
        cargo +nightly test -Zbuild-std --target "$host" --test restart_stress
}

# Memory once more, with what C does in it: zstd and libdeflate, mapped files, inflaters that threads hand on.
valgrind() {
    command -v valgrind >/dev/null || {
        echo "valgrind is missing: apt-get install valgrind" >&2
        return 1
    }
    local tests lib smoke
    tests=$(cargo test --no-run --lib --test fuzz_smoke 2>&1) || return 1
    lib=$(sed -n 's/.*src\/lib.rs (\(.*\))$/\1/p' <<<"$tests")
    smoke=$(sed -n 's/.*fuzz_smoke.rs (\(.*\))$/\1/p' <<<"$tests")
    local memcheck=(valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite
        --errors-for-leak-kinds=definite --fair-sched=yes)
    command "${memcheck[@]}" "$lib" backup::packed writer::encode object::pool writer::source --test-threads=2 &&
        CINDERFS_FUZZ_CASES=20 command "${memcheck[@]}" "$smoke" streams
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(asan tsan valgrind)
for step in "${steps[@]}"; do
    case $step in
    asan | tsan | valgrind) ;;
    *)
        echo "unknown step $step" >&2
        exit 2
        ;;
    esac
    echo "=== $step"
    "$step" || failed+=("$step")
done
[ ${#failed[@]} -eq 0 ] || echo "failed steps: ${failed[*]}" >&2
[ ${#failed[@]} -eq 0 ]
