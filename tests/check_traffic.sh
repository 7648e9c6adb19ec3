#!/bin/bash
# check_traffic.sh BUILD [all [NET...]]: sectors of global memory that the networks' kernels touch on the simulated GPU, against the
# least that is possible where the bytes lie, and strictly (tests/cudasim/traffic.c says what they are). A line "ok NET MODE" or
# "FAILED NET MODE" per network: the limits are 1.05 of the least for every kernel of more than 64 sectors, 1.25 strictly over all of
# them. Without `all`, MLP and LeNet only; with it, all (or those named): minutes for MobileNetV1, half an hour for VGG-16. A table is
# printed then; BUILD/traffic/NET.MODE.json holds what the simulator counted.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
nets="mlp:64x784 lenet:8x1x28x28"
[ "${2-}" = all ] && nets="$nets mobilenet:1x3x224x224 resnet18:1x3x224x224 resnet50:1x3x224x224 bert:1x128 vgg16:1x3x224x224"
out=$build/traffic
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$out"

# simulate FILE.json ARGUMENTS OF kiln bench: without libraries, so that every kernel is ours; races are other tests' matter
simulate() {
  LD_LIBRARY_PATH=$build/tests/cudasim CUDASIM_CUBLAS=0 CUDASIM_CUDNN=0 CUDASIM_CHECK=-race,-init CUDASIM_REPORT=$1 \
    "$build/kiln" bench "${@:2}" --device cuda --reps 1 >"$tmp/log" 2>&1 || { cat "$tmp/log"; return 1; }
}

# count NET MODE FILE.json: a row of the table; fails where a kernel is over
count() {
  awk -v net="$1" -v mode="$2" '
    function field(name) { return match($0, "\"" name "\": [0-9]+") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4) + 0 : 0 }
    /^{"name"/ {
      touched = field("sectors"); strict = least = field("ideal_sectors"); reachable = field("reachable_sectors")
      if (reachable > least) least = reachable
      kernels++; all += touched; all_least += least; all_strict += strict
      if (touched <= 64) next
      if (touched > worst * least) { worst = touched / least; split($0, word, "\""); name = word[4] }
      over += touched > 1.05 * least
    }
    END {
      bad = !kernels || over || all > 1.25 * all_strict
      printf "| %s | %s | %d | %.3f | %.3f | %.3f | `%s` |\n", net, mode, kernels, kernels ? all / all_least : 0, kernels ? all / all_strict : 0, worst, name
      exit bad
    }' "$3"
}

failed=0
[ "${2-}" = all ] && printf '| network | mode | kernels | sectors / least | strictly | worst kernel / least | which |\n|---|---|---|---|---|---|---|\n'
for net in $nets; do
  name=${net%%:*} shape=${net#*:}
  [ $# -gt 2 ] && [[ " ${*:3} " != *" $name "* ]] && continue
  "$build/bench/nets" "$tmp" "$name" && "$build/bench/nets" --training "$tmp" "$name" || exit 1
  for mode in inference training; do
    program=("$tmp/$name.pdmodel")
    [ $mode = training ] && program=("$tmp/$name.main.pdmodel" --startup "$tmp/$name.startup.pdmodel")
    report=$out/$name.$mode.json verdict=FAILED row=
    if simulate "$report" "${program[@]}" --feed-shape "x=$shape" && row=$(count "$name" $mode "$report"); then verdict=ok; fi
    [ $verdict = ok ] || failed=1
    if [ $verdict = ok ] && [ "${2-}" = all ]; then echo "$row"; else echo "$verdict $name $mode $row"; fi
  done
done
exit $failed
