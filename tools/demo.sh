#!/bin/sh
# demo.sh BUILD: LeNet-5 on Fashion-MNIST, from serialized programs, with the command line alone.
set -eu
build=$1
data=/usr/share/datasets/fashion-mnist
out=$build/demo
kiln=$build/kiln
mkdir -p "$out"

echo "== programs: $build/examples/lenet $out"
"$build/examples/lenet" "$out"
"$kiln" summary "$out/lenet_main.pdmodel" --feed-shape image=100x1x28x28 --feed-shape label=100x1 | tail -n 4
echo
echo "== training: 5 epochs of 60,000 images in batches of 100"
rm -rf "$out/run"
"$kiln" train --startup "$out/lenet_startup.pdmodel" --main "$out/lenet_main.pdmodel" \
  --test "$out/lenet_test.pdmodel" \
  --feed image=$data/train-images-idx3-ubyte.gz:scale=1/255 --feed label=$data/train-labels-idx1-ubyte.gz \
  --test-feed image=$data/t10k-images-idx3-ubyte.gz:scale=1/255 --test-feed label=$data/t10k-labels-idx1-ubyte.gz \
  --batch 100 --epochs 5 --shuffle --seed 1 --fetch loss,acc --save "$out/run" --log "$out/log"

echo
echo "== the 10,000 test images: a row per true class, a column per predicted class"
"$build/examples/predict" "$out/lenet_test.pdmodel" "$out/run/params.pdiparams" \
  $data/t10k-images-idx3-ubyte.gz $data/t10k-labels-idx1-ubyte.gz
echo
"$kiln" eval --main "$out/lenet_test.pdmodel" --params "$out/run" \
  --feed image=$data/t10k-images-idx3-ubyte.gz:scale=1/255 --feed label=$data/t10k-labels-idx1-ubyte.gz \
  --batch 100 --fetch loss,acc | sed 's/^acc /test accuracy /; s/^loss /test loss     /'
echo
echo "programs, parameters, checkpoints, and events for TensorBoard: $out"
