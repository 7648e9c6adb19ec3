#!/bin/bash
# cuda.sh BUILD: the command line with --device cuda: without a driver, where one line says what is missing and everything else
# works.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
data=$PWD/tests/data
kiln=$build/kiln
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export KILN_DEBUG='' NO_COLOR=1 KILN_CACHE_DIR=$tmp/cache
fails=0
cd "$tmp" || exit 1

# check NAME RC FILE PATTERN COMMAND...: the exit code, and a line of out or err.
check() {
  local name=$1 rc=$2 file=$3 pattern=$4 got
  shift 4
  "$@" >out 2>err </dev/null
  got=$?
  if [ $got -eq "$rc" ] && grep -qE -- "$pattern" "$file"; then
    echo "ok $name"
    return
  fi
  echo "FAILED $name"
  echo "  exit code $got; expected $rc and /$pattern/ in $file: $*"
  head -n 12 out err | sed 's/^/  /'
  fails=$((fails + 1))
}

cp "$data"/net_*.kl .
bench=("$kiln" bench net_main.kl --startup net_startup.kl --reps 2)
check "cpu is a device" 0 out '^median' "${bench[@]}" --device cpu
check "no other is" 1 err 'E-ARG-001.*unknown device "tpu"' "${bench[@]}" --device tpu
check "nor a wrong number" 1 err 'E-ARG-001.*unknown device "cuda:x"' "${bench[@]}" --device cuda:x
check "math is exact on a CPU" 1 err 'E-ARG-001.*math "tf32" is for GPUs' "${bench[@]}" --math tf32
check "no such math" 1 err 'E-ARG-001.*unknown math "fast"' "${bench[@]}" --math fast
if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
  check "no driver: info" 0 out '^cuda driver: none \(E-DEV-001' "$kiln" info
  check "no driver: bench" 1 err 'E-DEV-001.*libcuda\.so\.1' "${bench[@]}" --device cuda
fi
[ $fails -eq 0 ]
