#!/bin/bash
# run.sh BUILD...: every test binary of each build folder and the shell tests, a line each; sums up the test functions.
# JOBS of them run at a time (as many as there are cores): most use one thread for most of their time. KEEP=1 shows the output of
# passing tests too. Logs: BUILD/tests/NAME.log.
cd "$(dirname "$0")/.." || exit 1
[ $# -gt 0 ] || set -- build
jobs=${JOBS:-$(nproc)}
sums=$(mktemp) || exit 1 # a line "passed failed" for each; also the lock of what is printed
trap 'rm -f "$sums"' EXIT
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
# LeakSanitizer of gcc 12 crashes in the thread-local storage of libraries that were opened at run time (the code generator).
export LSAN_OPTIONS=use_tls=0
export KILN_DEBUG=

# one LABEL LOG COMMAND...: counts cmocka's test functions, or the "ok"/"FAILED" lines of a shell test.
one() {
  local label=$1 log=$2 ok bad rc start=$SECONDS
  shift 2
  "$@" >"$log" 2>&1
  rc=$?
  ok=$(grep -cE '^(\[       OK \]|ok )' "$log")
  bad=$(grep -cE '^(\[  FAILED  \] [a-zA-Z_0-9]+$|FAILED )' "$log")
  if [ $rc -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
  if [ $rc -eq 0 ]; then bad=0; fi
  (
    flock 9
    echo "$ok $bad" >&9
    printf '%-44s' "$label"
    if [ $rc -eq 0 ]; then
      printf '%4d passed %4ds\n' "$ok" $((SECONDS - start))
      [ -n "${KEEP-}" ] && cat "$log"
    else
      printf '%4d passed %d FAILED (exit %d) %4ds\n' "$ok" "$bad" "$rc" $((SECONDS - start))
      grep -vE '^\[ (RUN|      OK)' "$log" | tail -n 60 | sed 's/^/    /'
    fi
  ) 9>>"$sums"
}
begin() {
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  one "$@" &
}

for build in "$@"; do
  rm -rf "$build/tests/cache"
  export KILN_CACHE_DIR=$PWD/$build/tests/cache
  for test in "$build"/tests/test_*; do
    [ -x "$test" ] && [ -f "$test" ] && begin "$test" "$test.log" "$test"
  done
  for script in tests/*.sh; do
    case "$script" in
    tests/run.sh | tests/check.sh | tests/expect.sh) ;;
    *) begin "$script $build" "$build/tests/$(basename "$script").log" "$script" "$build" ;;
    esac
  done
done
wait
awk '{ ok += $1; bad += $2 } END { printf "%d passed, %d failed\n", ok, bad; exit bad > 0 || !ok }' "$sums"
