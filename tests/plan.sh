#!/bin/bash
# plan.sh BUILD: memory plans of the networks, verified by plan_check, which shares no code with the planner; and plans with
# planted faults, which it must catch. A line "ok NAME" or "FAILED NAME" per check.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
kiln=$build/kiln
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
export KILN_DEBUG=''
fails=0
ok() { echo "ok $1"; }
bad() {
  echo "FAILED $1"
  head -n 20 "$tmp/out" | sed 's/^/    /'
  fails=$((fails + 1))
}
# plan NAME RATIO MODEL ARGS...: the plan has no faults and its peak is at most RATIO of the lower bound.
plan() {
  local name=$1 ratio=$2
  shift 2
  if "$kiln" compile "$@" --plan "$tmp/$name.plan" -o /dev/null >"$tmp/out" 2>&1 &&
    "$build/tests/plan_check" "$tmp/$name.plan" >"$tmp/out" 2>&1 &&
    awk -v most="$ratio" '{ exit !($11 + 0 <= most + 0) }' <(sed 's/,//g; s/lower bound/bound/; s/ratio //' "$tmp/out"); then
    ok "$name: $(cat "$tmp/out")"
  else
    bad "$name"
  fi
}
# fault NAME WORDS SED-SCRIPT: plan_check finds it in the damaged plan of `base`.
base=lenet
fault() {
  sed -E "$3" "$tmp/$base.plan" >"$tmp/bad.plan"
  if cmp -s "$tmp/$base.plan" "$tmp/bad.plan"; then
    echo "the script changes nothing: $3" >"$tmp/out"
    bad "fault: $1"
    return
  fi
  "$build/tests/plan_check" "$tmp/bad.plan" >"$tmp/out" 2>&1
  if [ $? -eq 1 ] && grep -qE "$2" "$tmp/out"; then ok "fault: $1"; else bad "fault: $1"; fi
}

"$build/bench/nets" "$tmp" mlp lenet mobilenet resnet50 || exit 1
image=3x224x224
plan mlp 1.02 "$tmp/mlp.main.pdmodel" --fetch loss --feed-shape x=64x784 --feed-shape label=64x1
plan mlp-infer 1 "$tmp/mlp.pdmodel" --feed-shape x=64x784
plan lenet 1.02 "$tmp/lenet.main.pdmodel" --fetch loss --feed-shape x=64x1x28x28 --feed-shape label=64x1
plan lenet-infer 1 "$tmp/lenet.pdmodel" --feed-shape x=64x1x28x28
for net in mobilenet resnet50; do
  plan $net 1.02 "$tmp/$net.main.pdmodel" --fetch loss --feed-shape x=16x$image --feed-shape label=16x1
  plan $net-infer 1 "$tmp/$net.pdmodel" --feed-shape x=1x$image
done
plan mobilenet-300M 1.1 "$tmp/mobilenet.main.pdmodel" --fetch loss --feed-shape x=16x$image --feed-shape label=16x1 --memory-budget 300M
plan resnet50-500M 1.1 "$tmp/resnet50.main.pdmodel" --fetch loss --feed-shape x=16x$image --feed-shape label=16x1 --memory-budget 500M
for net in attention convnet mlp regression_adamw inference; do
  plan "fixture-$net" 1.1 "tests/fixtures/$net/main.pdmodel"
done

# What the plan of LeNet says at some places; the scripts change it.
value() { grep -m1 -E "^value [0-9]+ memory $1 .*bytes $2 .*kernels $3" "$tmp/$base.plan" | cut -d' ' -f2; }
relu=$(value 0 2949120 '[01]\.\.') # the first activation; read until the backward
by=$(sed -n "s/^value $relu memory 0 .* kernels ([0-9]+)\..*/\1/p" -E "$tmp/$base.plan") # the kernel that writes it
next=$((by + 1))
keep=$(sed -n 's/^keep //p' "$tmp/$base.plan" | tail -n 1)
loss=$(sed -n "s/^alias $keep of //p" "$tmp/$base.plan")
loss=${loss:-$keep}
last=$(grep ^kernel "$tmp/$base.plan" | tail -n 1 | cut -d' ' -f2)
arena=$(sed -n 's/^memory 0 arena //p' "$tmp/$base.plan")
state=$(value '[1-9][0-9]*' 1600000 '-1\.\.') # the largest weight
fault "overlap" "overwritten or never written" "s/^(value [0-9]+ memory 0 at )[0-9]+/\10/"
fault "off the alignment" "off the alignment" "s/^(value $relu memory 0 at )[0-9]+/\18/"
fault "arena too small" "outside its memory" "s/^(memory 0 arena )[0-9]+/\1100000/"
fault "read before it is written" "value $relu is needed" "/^write $relu$/d"
fault "written twice" "written twice" "s/^(write )$relu$/\1$relu\n\1$relu/"
fault "an input overwritten that is read elsewhere too" "which the kernel reads" "s/^(read [0-9]+) aligned/\1/"
fault "the result overwritten before the exit" "exit.*value $loss is needed" "s/^(kernel $last .*)$/\1\nwork at 0 bytes $arena/"
fault "a weight updated before it is read" "value $state is needed" "/^read $state aligned/d; s/^(keep $keep)$/\1\nkeep $state/"
fault "a workspace over an input" "overwrites|overwritten" "s/^(kernel $next .*)$/\1\nwork at 0 bytes 4000000/"
fault "a constant written" "in a constant" "s/^(write )$relu$/\1$relu\nwrite 0/; /^kernel $by /,/^kernel $next /{/^read 0/d}"
base=resnet50-infer
kept=$(grep -m1 -E "^memory [0-9]+ kept" "$tmp/$base.plan" | cut -d' ' -f2)
fault "a kept value in the arena" "overwritten or never written" "s/^(value [0-9]+ memory )$kept /\10 /"
exit $((fails > 0))
