#!/bin/bash
# cuda.sh BUILD: the command line with --device cuda: without a driver, where one line says what is missing and everything else
# works; and on the simulator of the driver.
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

if [ -e "$build/tests/cudasim/libcuda.so.1" ]; then
  export LD_LIBRARY_PATH=$build/tests/cudasim CUDASIM_LEAKS=1
  check "simulator: info" 0 out '^cuda:0: cudasim' "$kiln" info
  check "simulator: verify" 0 out 'all checks passed' "$kiln" verify net_main.kl --startup net_startup.kl --device cuda
  check "simulator: a run is one graph" 0 out '^launches +1 of graphs, 0 of kernels' "${bench[@]}" --reps 8 --device cuda
  check "simulator: bench as JSON" 0 out '"graph_launches": 1' "${bench[@]}" --reps 8 --device cuda:0 --json
  check "simulator: no second device" 1 err 'E-DEV-003.*no device cuda:1' "${bench[@]}" --device cuda:1
  check "simulator: profile" 0 out '_momentum' "${bench[@]}" --device cuda --profile
fi
[ $fails -eq 0 ]
