#!/bin/bash
# nets.sh BUILD: the networks of the benchmarks. Each one's training program is read, verified and compiled to kernels with a
# plan that has no faults; the small ones take a step. A line "ok NAME" or "FAILED NAME" per check.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
export KILN_DEBUG=''
fails=0
check() {
  local name=$1
  shift
  if "$@" >"$tmp/out" 2>&1; then
    echo "ok $name"
  else
    echo "FAILED $name"
    head -n 20 "$tmp/out" | sed 's/^/    /'
    fails=$((fails + 1))
  fi
}
check "programs" "$build/bench/nets" --training "$tmp"
for net in mlp:784 lenet:1x28x28 mobilenet:3x224x224 resnet18:3x224x224 resnet50:3x224x224 vgg16:3x224x224 bert:128; do
  name=${net%%:*}
  shapes=(--feed-shape "x=2x${net#*:}" --feed-shape label=2x1 --fetch loss)
  check "$name compiles" "$build/kiln" compile "$tmp/$name.main.pdmodel" "${shapes[@]}" --plan "$tmp/plan" -o /dev/null
  check "$name has a plan" "$build/tests/plan_check" "$tmp/plan"
  case $name in
  mlp | lenet) check "$name runs" "$build/kiln" bench "$tmp/$name.main.pdmodel" --startup "$tmp/$name.startup.pdmodel" "${shapes[@]}" --once ;;
  esac
done
exit $((fails > 0))
