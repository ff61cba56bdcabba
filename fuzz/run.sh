#!/usr/bin/env bash
# Runs each fuzz target for a given time, one after the other, and prints a table of the results.
#
#     fuzz/run.sh SECONDS [TARGET...]
#
# Inputs that reach new code go to fuzz/work/TARGET, findings to fuzz/artifacts/TARGET; neither is in the
# repository. Exits with 1 if there was a finding.
set -uo pipefail
cd "$(dirname "$0")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] ||
    targets=(requests stream grammar scheduler stored tokenizer weights gguf config template)

# Fuzzing needs unstable compiler flags; this enables them without a nightly toolchain.
export RUSTC_BOOTSTRAP=1
# Use the same dependency versions as Skald.
[ Cargo.lock -nt ../Cargo.lock ] || cp ../Cargo.lock Cargo.lock
cargo fuzz build -s none || exit 2

triple=$(rustc -vV | sed -n 's/^host: //p')
# Reports the processor seconds of a command.
TIMEFORMAT='processor %U %S'
findings=0
rows=()
for target in "${targets[@]}"; do
    work=work/$target
    log=work/$target.log
    mkdir -p "$work" "artifacts/$target"
    options=(-max_total_time="$seconds" -timeout=120 -rss_limit_mb=4096 -print_final_stats=1
        -artifact_prefix="artifacts/$target/")
    # No input larger than those in the corpus.
    case $target in
    weights | gguf) options+=(-max_len=8192) ;;
    *) options+=(-max_len=4096) ;;
    esac
    [ -f "dict/$target.dict" ] && options+=(-dict="dict/$target.dict")
    begun=$SECONDS
    # New inputs are written to the first directory; the second is only read.
    { time "target/$triple/release/$target" "${options[@]}" "$work" "corpus/$target" >"$log" 2>&1; } \
        2>"$log.time"
    result=ok
    if grep -q '^Test unit written to' "$log"; then
        result=$(sed -n 's/^.*Test unit written to //p' "$log" | tail -1)
        findings=1
    fi
    # From libFuzzer's final statistics, or from its last progress line.
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    [ -n "$executions" ] || executions=$(grep -o '^#[0-9]*' "$log" | tail -1 | tr -d '#')
    coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | tr -dc 0-9)
    processor=$(sed -n 's/^processor //p' "$log.time" | awk '{printf "%.0f", $1 + $2}')
    rows+=("$(printf '| %s | %d | %s | %s | %s | %s |' "$target" $((SECONDS - begun)) \
        "${processor:-?}" "${executions:-?}" "${coverage:-?}" "$result")")
    printf '%s\n' "${rows[-1]}"
done

echo
echo '| target | wall s | processor s | executions | edges covered | finding |'
echo '|---|---|---|---|---|---|'
printf '%s\n' "${rows[@]}"
exit $findings
