#!/bin/bash
# cuda.sh BUILD: the command line with --device cuda: without a driver, where one line says what is missing and everything else
# works; and on the simulator of the driver, without and with libraries.
. "$(dirname "$0")/expect.sh" "$@"
data=$tests/data

cp "$data"/net_*.kl .
bench=("$kiln" bench net_main.kl --startup net_startup.kl --reps 2)
expect_text "cpu is a device" 0 out '^median' "${bench[@]}" --device cpu
expect_text "no other is" 2 err 'E-ARG-001.*unknown device "tpu"' "${bench[@]}" --device tpu
expect_text "nor a wrong number" 2 err 'E-ARG-001.*unknown device "cuda:x"' "${bench[@]}" --device cuda:x
expect_text "math is exact on a CPU" 2 err 'E-ARG-001.*math "tf32" is for GPUs' "${bench[@]}" --math tf32
expect_text "no such math" 2 err 'E-ARG-001.*unknown math "fast"' "${bench[@]}" --math fast
if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
  expect_text "no driver: info" 0 out '^cuda driver: none \(E-DEV-001' "$kiln" info
  expect_text "no driver: bench" 1 err 'E-DEV-001.*libcuda\.so\.1' "${bench[@]}" --device cuda
fi

if [ -e "$build/tests/cudasim/libcuda.so.1" ]; then
  export LD_LIBRARY_PATH=$build/tests/cudasim CUDASIM_LEAKS=1 CUDASIM_CUBLAS=0 CUDASIM_CUDNN=0
  expect_text "simulator: info" 0 out '^cuda:0: cudasim' "$kiln" info
  expect_text "simulator: verify" 0 out 'all checks passed' "$kiln" verify net_main.kl --startup net_startup.kl --device cuda
  expect_text "simulator: a run is one graph" 0 out '^launches +1 of graphs, 0 of kernels' "${bench[@]}" --reps 8 --device cuda
  expect_text "simulator: bench as JSON" 0 out '"graph_launches": 1' "${bench[@]}" --reps 8 --device cuda:0 --json
  expect_text "simulator: no second device" 1 err 'E-DEV-003.*no device cuda:1' "${bench[@]}" --device cuda:1
  expect_text "simulator: the second of two devices" 0 out '^device +cuda:1|^launches' env CUDASIM_DEVICES=2 "${bench[@]}" --device cuda:1
  expect_text "simulator: one of them is visible" 0 out '^launches' env CUDASIM_DEVICES=2 CUDA_VISIBLE_DEVICES=1 "${bench[@]}" --device cuda:0
  expect_text "simulator: the other is not" 1 err 'CUDA_VISIBLE_DEVICES is "?1' env CUDASIM_DEVICES=2 CUDA_VISIBLE_DEVICES=1 "${bench[@]}" --device cuda:1
  expect_text "simulator: none is" 1 err 'E-DEV-003' env CUDA_VISIBLE_DEVICES=-1 "${bench[@]}" --device cuda
  expect_text "simulator: an old driver" 1 err 'E-DEV-002.*11\.4' env CUDASIM_DRIVER=11020 "${bench[@]}" --device cuda
  expect_text "simulator: an old GPU" 1 err 'E-DEV-004.*7\.0' env CUDASIM_SM=70 "${bench[@]}" --device cuda
  expect_text "simulator: little memory" 1 err 'E-DEV-005.*bytes' env CUDASIM_MEMORY=4K "${bench[@]}" --device cuda
  expect_text "simulator: a driver too old for the GPU" 1 err 'E-DEV-002' env CUDASIM_DRIVER=11040 CUDASIM_SM=100 "${bench[@]}" --device cuda
  CUDASIM_CALLS=calls "${bench[@]}" --device cuda >/dev/null
  call() { awk -v name="$1" '$2 == name { print $1; exit }' calls; }
  expect_text "simulator: a launch that fails" 1 err 'E-DEV-007.*cuLaunchKernel' env CUDASIM_FAIL="$(call cuLaunchKernel):1" "${bench[@]}" --device cuda
  expect_text "simulator: a copy that fails" 1 err 'E-DEV-008.*cuMemcpyHtoDAsync' env CUDASIM_FAIL="$(call cuMemcpyHtoDAsync_v2):1" "${bench[@]}" --device cuda
  expect_text "simulator: a device that is lost" 1 err 'E-DEV-009' env CUDASIM_FAIL="$(call cuLaunchKernel):700" "${bench[@]}" --device cuda
  sed 's/= relu(X=/= custom_relu(X=/; s/relu_grad(Out=fc_0.tmp_2, /custom_relu_grad(X=fc_0.tmp_1, Out=fc_0.tmp_2, /' net_main.kl >custom.kl
  expect_text "simulator: C functions run on the host" 0 out '^launches +0 of graphs, [0-9]+ of kernels' "$kiln" --plugin "$build/examples/custom_relu.so" \
    bench custom.kl --startup net_startup.kl --reps 8 --device cuda
  expect_text "simulator: profile" 0 out '_momentum' "${bench[@]}" --device cuda --profile
  # Steps are handed over before the ones before them are looked at: the same epochs, checkpoints and errors as on a CPU.
  perl -e '
    my $n = 96; my (@x, @y);
    for my $i (0 .. $n - 1) { push @y, $i % 4; push @x, map { int($_ / 4) == $i % 4 ? 1 : ($i * 7 + $_ * 3) % 5 / 10 } 0 .. 15 }
    sub idx { my ($f, $type, $pack, $dims, @v) = @_; open my $o, ">", $f; binmode $o;
      print $o pack("C4 N*", 0, 0, $type, scalar @$dims, @$dims), pack("$pack*", @v) }
    idx("x.idx", 0x0d, "f>", [$n, 16], @x); idx("y.idx", 0x08, "C", [$n, 1], @y);
    $y[70] = 9; idx("bad.idx", 0x08, "C", [$n, 1], @y);'
  train=("$kiln" train --startup net_startup.kl --main net_main.kl --test "$data/net_test.kl" --batch 20 --fetch loss,acc --feed x=x.idx --test-feed x=x.idx --test-feed y=y.idx --epochs 3)
  expect "train on a CPU" 0 "${train[@]}" --feed y=y.idx --save cpu --save-every 4
  sed 's/ [0-9,]* img.s//' out >cpu.txt
  expect "train on the simulator" 0 "${train[@]}" --feed y=y.idx --save gpu --save-every 4 --device cuda
  sed 's/ [0-9,]* img.s//' out >gpu.txt
  same "train: the same epochs" cpu.txt gpu.txt
  expect_text "train: the step of a failed check" 1 err 'E-DAT-002.*value 9 at element 10' "${train[@]}" --feed y=bad.idx --device cuda
  expect_text "train: on a CPU" 1 err 'step 3' "${train[@]}" --feed y=bad.idx
  expect_text "train: and on the simulator" 1 err 'step 3' "${train[@]}" --feed y=bad.idx --device cuda
  expect_text "libraries: too old" 0 out '^cuDNN: version 0, 8000 is needed' "$kiln" info
  unset CUDASIM_CUBLAS CUDASIM_CUDNN
  expect_text "libraries: info" 0 out '^cuBLASLt: libcublasLt.so.13, version 130100' "$kiln" info
  expect_text "libraries: verify" 0 out 'all checks passed' env KILN_DEBUG=libraries "$kiln" verify net_main.kl --startup net_startup.kl --device cuda
  expect_text "libraries: profile" 0 out 'k.*_mul_.*  cuBLASLt' env KILN_DEBUG=libraries "${bench[@]}" --device cuda --profile
  expect "libraries: none by the rule" 0 "${bench[@]}" --device cuda --profile --deterministic
  if grep -q cuBLASLt out; then bad "libraries: none by the rule" "a library was chosen"; fi
fi
[ $fails -eq 0 ]
