#!/bin/bash
# check_ptx.sh BUILD [all [NET...]]: the networks' kernels, assembled by ptxas of the CUDA Toolkit. A line "ok NAME" or "FAILED
# NAME" per program, arithmetic and architecture, with what ptxas says of its kernels. Without `all`, small networks only; with
# it, all (or those named), also for inference and newer architectures, as many programs at once as there are cores; then
# BUILD/ptx/NET.MODE holds a line per kernel, and a table of all of them is printed.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
export PTXAS=${PTXAS:-$(command -v ptxas || echo "${CUDA:-/usr/local/cuda}/bin/ptxas")}
export KILN_DEBUG=''
if ! "$PTXAS" --version >/dev/null 2>&1; then
  echo "skipped: PTX is not assembled, there is no ptxas (install the CUDA Toolkit, or name it in PTXAS)"
  exit 0
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
nets="mlp:64:784 lenet:64:1x28x28"
targets=cuda:sm_75,cuda:sm_80,cuda:sm_80:tf32,cuda:sm_80:bf16
modes=train
out=$tmp
jobs=1
if [ "${2-}" = all ]; then
  nets="resnet50:64:3x224x224 mobilenet:64:3x224x224 vgg16:32:3x224x224 bert:8:128 $nets"
  for sm in 90 100; do targets=$targets,cuda:sm_$sm,cuda:sm_$sm:tf32,cuda:sm_$sm:bf16; done
  modes="train infer"
  out=$build/ptx
  jobs=$(nproc)
  mkdir -p "$out"
fi

# program NET:BATCH:SHAPE MODE: the lines of ptx_check in $out/NET.MODE
program() {
  local name batch shape file
  IFS=: read -r name batch shape <<<"$1"
  file=$out/$name.$2
  if "$build/bench/ptx_check" --kernels $targets "$tmp/$name.main.pdmodel" "$2" "x=${batch}x$shape" \
    "label=${batch}x1" >"$file" 2>&1; then
    grep ' launches ' "$file" | sed 's/^/ok /'
    return
  fi
  echo "FAILED $name $2"
  grep -vE ' 0 spilled ' "$file" | sed 's/^/    /'
  return 1
}
export -f program
export build targets tmp out

# Of all kernels of one form: how many, most registers, spilled bytes, most shared memory, occupancy.
table() {
  echo "| architecture | arithmetic | form | kernels | registers, most | spilled bytes | shared bytes, most | occupancy, mean | least |"
  echo "|---|---|---|---|---|---|---|---|---|"
  cat "$@" | grep ' registers ' | LC_ALL=C sort -u | awk '{
      key = $2 " | " $3 " | " $4; n[key]++; spilled[key] += $7
      if ($5 > most[key]) most[key] = $5
      if ($9 + $11 > shared[key]) shared[key] = $9 + $11
      sum[key] += $15; if (n[key] == 1 || $15 < least[key]) least[key] = $15
    }
    END { for (k in n) printf "| %s | %d | %d | %d | %d | %.0f %% | %d %% |\n", k, n[k], most[k], spilled[k], shared[k], sum[k] / n[k], least[k] }' |
    sort -t_ -k2n
}

picked=()
for net in $nets; do
  name=${net%%:*}
  [ $# -gt 2 ] && [[ " ${*:3} " != *" $name "* ]] && continue
  "$build/bench/nets" --training "$tmp" "$name" || exit 1
  for mode in $modes; do picked+=("$net" "$mode"); done
done
printf '%s\n' "${picked[@]}" | xargs -n 2 -P "$jobs" bash -c 'program "$@"' program || exit 1
[ "${2-}" != all ] || table "$out"/*
