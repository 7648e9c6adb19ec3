#!/bin/bash
# check_ptx.sh BUILD [all]: the networks' kernels, assembled by ptxas of the CUDA Toolkit. A line "ok NAME" or "FAILED NAME" per
# program, arithmetic and architecture, with what ptxas says of its kernels. Without `all`, small ones only.
cd "$(dirname "$0")/.." || exit 1
build=$(realpath "${1:-build}")
export PTXAS=${PTXAS:-$(command -v ptxas || echo "${CUDA:-/usr/local/cuda}/bin/ptxas")}
export KILN_DEBUG=''
if [ ! -x "$PTXAS" ]; then
  echo "skipped: PTX is not assembled, there is no ptxas (install the CUDA Toolkit, or name it in PTXAS)"
  exit 0
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
fails=0
nets="mlp:64:784 lenet:64:1x28x28"
archs="sm_75 sm_80"
modes="train"
if [ "${2-}" = all ]; then
  nets="$nets vgg16:32:3x224x224 resnet50:64:3x224x224 mobilenet:64:3x224x224 bert:8:128"
  archs="sm_75 sm_80 sm_90 sm_100"
  modes="train infer"
fi
for net in $nets; do
  IFS=: read -r name batch shape <<<"$net"
  "$build/bench/nets" --training "$tmp" "$name" || exit 1
  for arch in $archs; do
    maths="f32 tf32 bf16"
    [ "$arch" = sm_75 ] && maths=f32
    for math in $maths; do
      for mode in $modes; do
        if "$build/bench/ptx_check" "cuda:$arch:$math" "$tmp/$name.main.pdmodel" $mode "x=${batch}x$shape" \
          "label=${batch}x1" >"$tmp/out" 2>&1; then
          echo "ok $(tail -n 1 "$tmp/out")"
        else
          echo "FAILED $name $mode $math $arch"
          sed 's/^/    /' "$tmp/out"
          fails=$((fails + 1))
        fi
      done
    done
  done
done
[ $fails -eq 0 ]
