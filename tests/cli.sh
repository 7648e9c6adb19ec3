#!/bin/bash
# cli.sh BUILD: the command line from outside: verbs, exit codes, errors, interruption, files. Data and damaged files are made
# here; the network is tests/data/net_*.kl.
. "$(dirname "$0")/expect.sh" "$@"
data=$tests/data
trap 'mountpoint -q "$tmp/small" && umount "$tmp/small"; chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT

# A failure: exit 1, exactly one error with this code, and nothing on stdout but what was printed before it.
expect_error() { # NAME CODE PATTERN COMMAND...: one error, exit 2 for wrong usage, else 1
  local name=$1 code=$2 pattern=$3 n rc=1
  shift 3
  [ $code = E-ARG-001 ] && rc=2
  "$@" >out 2>err </dev/null
  local got=$?
  n=$(grep -c '^error\[' err)
  if [ $got -ne $rc ] || [ "$n" -ne 1 ] || ! grep -q "^error\[$code\]" err || ! grep -qE -- "$pattern" err; then
    bad "$name" "exit $got, $n errors; expected exit $rc and one $code with /$pattern/: $*"
    return 1
  fi
  pass "$name"
}
sum_of() { sha256sum <"$1" | cut -c1-64; }

# ---- data: N rows of 16 values, the class is where the large ones are; also as .npy and gzipped ----
perl -e '
  my ($n, $s) = (500, 7);
  my ($x, $y, $f, $l) = ("", "", "", "");
  for my $i (0 .. $n - 1) {
    my $c = $i * 7 % 4;
    for my $k (0 .. 15) {
      $s = ($s * 1103515245 + 12345) & 0x7fffffff;
      my $v = ($s >> 16) % 90 + ($k >> 2 == $c ? 120 : 0);
      $x .= chr $v; $f .= pack "f<", $v / 255;
    }
    $y .= chr $c; $l .= pack "q<", $c;
  }
  sub put { open my $o, ">", $_[0] or die; binmode $o; print $o $_[1]; close $o }
  sub npy { my $h = $_[0]; $h .= " " while (11 + length $h) % 64; "\x93NUMPY\1\0" . pack("v", 1 + length $h) . "$h\n" }
  put("x.idx", pack("C4N2", 0, 0, 8, 2, $n, 16) . $x);
  put("y.idx", pack("C4N", 0, 0, 8, 1, $n) . $y);
  put("x.npy", npy("{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": ($n, 16), }" =~ tr/"/\x27/r) . $f);
  put("y.npy", npy("{\"descr\": \"<i8\", \"fortran_order\": False, \"shape\": ($n, 1), }" =~ tr/"/\x27/r) . $l);
  substr($l, 8 * 37, 8) = pack "q<", 4;
  put("bad.npy", npy("{\"descr\": \"<i8\", \"fortran_order\": False, \"shape\": ($n, 1), }" =~ tr/"/\x27/r) . $l);
'
gzip -k x.idx y.idx
feeds=(--feed x=x.idx:scale=1/255 --feed y=y.idx)
tests=(--test "$data/net_test.kl" --test-feed x=x.idx:scale=1/255 --test-feed y=y.idx)
train=("$kiln" train --startup "$data/net_startup.kl" --main "$data/net_main.kl" --batch 64 --fetch loss,acc --shuffle)

# ---- help, usage ----
expect_text "no verb" 2 err '^usage' "$kiln"
expect_text "help" 0 out '  train ' "$kiln" --help
expect_text "version" 0 out '^kiln [0-9]' "$kiln" --version
expect_text "unknown verb" 2 err 'did you mean train' "$kiln" tain
for verb in info ops explain summary dump compile run train eval bench verify convert edit diff cache; do
  expect_text "$verb --help" 0 out "^usage: kiln $verb" "$kiln" $verb --help
done
expect_text "unknown flag" 2 err 'did you mean --batch' "${train[@]}" "${feeds[@]}" --bach 3
expect_text "flag without value" 2 err 'needs a value' "$kiln" dump "$data/net_main.kl" --format
expect_text "malformed number" 2 err 'not a valid' "${train[@]}" "${feeds[@]}" --epochs 3x
expect_text "missing argument" 2 err 'missing arguments' "$kiln" dump
expect_text "bad form" 2 err 'did you mean llvm' "$kiln" compile "$data/net_main.kl" --emit lvm

# ---- info, ops, explain ----
expect_text "info" 0 out '^version: ' "$kiln" info
expect "info --json" 0 "$kiln" info --json && valid_json "info JSON" out
expect_text "ops" 0 out '^conv2d ' "$kiln" ops
expect_text "ops NAME" 0 out 'padding_algorithm' "$kiln" ops conv2d
expect_error "ops: misspelt" E-OPR-001 'did you mean' "$kiln" ops conv2e
expect "ops --json" 0 "$kiln" ops --json && valid_json "ops JSON" out
expect_text "explain" 0 out 'E-DAT-002' "$kiln" explain
expect_text "explain CODE" 0 out 'out of range' "$kiln" explain E-DAT-002
expect "explain: no such code" 2 "$kiln" explain E-XYZ-999

# ---- programs ----
expect "convert to pdmodel" 0 "$kiln" convert "$data/net_main.kl" -o main.pdmodel
expect "convert back" 0 "$kiln" convert main.pdmodel -o main.kl
same "the text form survives" main.kl "$data/net_main.kl"
expect "convert again" 0 "$kiln" convert main.kl -o main2.pdmodel
same "the binary form survives" main.pdmodel main2.pdmodel
sed '1s/.*/& seed 11/' main.kl >seeded.kl
expect_text "convert: a seed stays behind" 0 err '--seed 11' "$kiln" convert seeded.kl -o seeded.pdmodel
expect_text "convert: unknown format" 2 err 'neither' "$kiln" convert main.kl -o main.txt
expect_text "dump" 0 out 'softmax_with_cross_entropy' "$kiln" dump main.pdmodel
"$kiln" dump - <main.pdmodel >out 2>err && grep -q softmax out && pass "dump from a pipe" || bad "dump from a pipe" "-"
expect_text "dump dot" 0 out '^digraph' "$kiln" dump main.pdmodel --format dot
expect "dump json" 0 "$kiln" dump main.pdmodel --format json && valid_json "dump JSON" out
expect_text "summary" 0 out '^parameters: 256 trainable' "$kiln" summary main.pdmodel --feed-shape x=8x16 --feed-shape y=8x1
expect "summary --json" 0 "$kiln" summary main.pdmodel --json && valid_json "summary JSON" out
expect_error "summary: no such feed" E-ARG-001 'names no input' "$kiln" summary main.pdmodel --feed-shape z=8
expect_error "summary: a dimension beyond any number" E-ARG-001 '"99999999999999999999x16" is no shape' "$kiln" summary main.pdmodel --feed-shape x=99999999999999999999x16
expect_error "missing file" E-IO-001 'none.pdmodel' "$kiln" dump none.pdmodel
mkdir empty
expect_error "an empty folder" E-IO-001 "empty" "$kiln" dump empty
expect_error "a fifo is not read" E-IO-001 '' bash -c 'mkfifo fifo; exec "$0" dump fifo' "$kiln"
expect_error "not a program" E-PRO-001 'x.npy' "$kiln" dump x.npy
expect_error "a syntax error" E-TXT-001 'line 2' bash -c 'printf "program version 0\nblok\n" >bad.kl; exec "$0" dump bad.kl' "$kiln"
"$kiln" --error-format=json dump none.pdmodel >out 2>err
[ $? -eq 1 ] && grep -q E-IO-001 err && valid_json "an error as JSON" err || bad "an error as JSON" "exit code"

# cut and flipped files: an error or a right answer, never a signal
size=$(stat -c %s main.pdmodel)
broken=0 crashes=0
for i in $(seq 0 60); do
  head -c $((size * i / 61)) main.pdmodel >cut.pdmodel
  perl -e 'local $/; open F, "<", "main.pdmodel"; $_ = <F>; my $at = $ARGV[0] * 7919 % length; substr($_, $at, 1) ^= chr(1 << $ARGV[0] % 8); print' $i >flip.pdmodel
  for f in cut flip; do
    "$kiln" summary $f.pdmodel >out 2>err
    rc=$?
    [ $rc -eq 1 ] && [ "$(grep -c '^error\[E-' err)" -eq 1 ] && broken=$((broken + 1))
    [ $rc -gt 1 ] && crashes=$((crashes + 1)) && cp $f.pdmodel "crash-$i.pdmodel" && tail -n 20 err
  done
done
if [ $crashes -eq 0 ] && [ $broken -gt 60 ]; then pass "damaged programs ($broken of 122 refused)"
else bad "damaged programs" "$crashes crashes, $broken refused"; fi

# ---- compile ----
shapes=(--feed-shape x=64x16 --feed-shape y=64x1 --fetch loss)
expect_text "compile: program" 0 out '^block 0' "$kiln" compile main.pdmodel "${shapes[@]}" --emit program
expect "compile: graph" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --emit graph -o graph.kl
[ -s graph.kl ] && pass "compile -o" || bad "compile -o" "nothing written"
expect_text "compile: dot" 0 out digraph "$kiln" compile main.pdmodel "${shapes[@]}" --emit dot
expect_text "compile: html" 0 out '<table>' "$kiln" compile main.pdmodel "${shapes[@]}" --emit html
expect_text "compile: llvm" 0 out '^define ' "$kiln" compile main.pdmodel "${shapes[@]}" --emit llvm
expect_text "compile: asm" 0 out '\.text' "$kiln" compile main.pdmodel "${shapes[@]}" --emit asm
expect "compile: object" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --emit object -o net.o
[ "$(head -c 4 net.o 2>/dev/null | tail -c 3)" = ELF ] && pass "an ELF object" || bad "an ELF object" "no ELF header"
expect_text "compile: ptx" 0 out '\.visible \.entry' "$kiln" compile main.pdmodel "${shapes[@]}" --target cuda:sm_80 --emit ptx
if ptxas --version >/dev/null 2>&1; then
  cp out net.ptx
  expect "ptxas accepts it" 0 ptxas -arch=sm_80 -o /dev/null net.ptx
else
  echo "skipped: ptxas accepts it (no CUDA Toolkit)"
fi
expect "LeNet's programs" 0 "$build/examples/lenet" .
expect_text "a gradient through a loop" 0 out '^push [0-9.]* m/s lands off the target by 0\.0' "$build/examples/throw"
for arch in sm_75 sm_80 sm_90; do
  expect "compile: ptx of LeNet's training for $arch" 0 "$kiln" compile lenet_main.pdmodel --target cuda:$arch \
    --emit ptx --feed-shape image=64x1x28x28 --feed-shape label=64x1 -o lenet.ptx
  ptxas --version >/dev/null 2>&1 || { echo "skipped: ptxas accepts LeNet for $arch (no CUDA Toolkit)"; continue; }
  expect "ptxas accepts LeNet for $arch" 0 ptxas -arch=$arch -o /dev/null lenet.ptx
done
expect_error "ptx without a target" E-ARG-001 'cuda:sm_NN' "$kiln" compile main.pdmodel --emit ptx
expect_error "unknown target" E-ARG-001 'quantum' "$kiln" compile main.pdmodel --target quantum
expect_error "unknown processor" E-GEN-002 'quantum' "$kiln" compile main.pdmodel --target cpu:quantum --emit asm
# The microkernels and loops for every processor that is known, of whatever kind this machine is: asm and an object.
while IFS='"' read -r arch name rest; do
  isa=$(tr -dc A-Z0-9 <<<"$rest")
  case $isa in AVX512) code='vfmadd231ps.*zmm' ;; AVX2) code='vfmadd231ps.*ymm' ;; NEON) code='fmla' ;; *) code='addps' ;; esac
  processors=$((${processors:-0} + 1))
  expect_text "compile: asm for $name" 0 out "$code" "$kiln" compile lenet_test.pdmodel --target "cpu:$name" --emit asm
done < <(grep -E '^(X86|ARM)\(' "$data/../../backends/llvm/cpus.def" | sed 's/^ARM(\(.*\))/ARM(\1, NEON)/')
[ "${processors:-0}" -gt 20 ] || bad "processors of cpus.def" "only ${processors:-0}"
expect "compile: object for AArch64" 0 "$kiln" compile lenet_test.pdmodel --target cpu:cortex-a76 --emit object -o arm.o
[ "$(od -An -tu2 -j18 -N2 arm.o | tr -d ' ')" = 183 ] && pass "an object of AArch64" || bad "an object of AArch64" "other machine"
expect_text "print-after" 0 err 'cse' "$kiln" compile main.pdmodel "${shapes[@]}" --print-after=cse
expect_text "time-passes" 0 err '^fuse ' "$kiln" compile main.pdmodel "${shapes[@]}" --time-passes
expect "stop-after" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --stop-after=dce
expect_error "unknown pass" E-ARG-001 'fuze' "$kiln" compile main.pdmodel --print-after=fuze
expect "disable-pass" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --disable-pass=split
expect "dump-dir" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --dump-dir=dumps
ls dumps/*.kl >/dev/null 2>&1 && pass "a file per pass" || bad "a file per pass" "no dumps/*.kl"

expect_text "memory budget: too small" 1 err 'more than the memory budget of 1024' "$kiln" compile main.pdmodel "${shapes[@]}" --memory-budget 1K
expect "memory budget: large" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --memory-budget=1.5G
for budget in 0 -1 1Q 1KB K 1e300 nan; do
  expect_text "memory budget: $budget" 2 err 'not a valid BYTES' "$kiln" compile main.pdmodel "--memory-budget=$budget"
done

expect "conv error" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --conv-error 3e-6
for eps in -1 1 nan inf x; do
  expect_text "conv error: $eps" 2 err 'not a valid EPS' "$kiln" compile main.pdmodel "--conv-error=$eps"
done

cat >conv.kl <<'TEXT'
program version 0
block 0 parent -1 {
  var x float32 [-1, 64, 28, 28] feed stop_gradient
  param w float32 [64, 64, 3, 3]
  var y float32 [-1, 64, 28, 28]
  Output=y = conv2d(Filter=w, Input=x) {paddings=[1, 1]}
}
TEXT
expect_text "conv error: as sums are" 0 out 'by winograd' "$kiln" compile conv.kl --fetch y
expect_text "conv error: sums alone" 0 out 'by conv' "$kiln" compile conv.kl --fetch y --conv-error 0
cp out sums.kl
expect "conv error: deterministic" 0 "$kiln" compile conv.kl --fetch y --deterministic
same "conv error: deterministic runs sum" out sums.kl
expect_text "compile: who computes what" 0 out '^  by [a-z]+ ' "$kiln" compile main.pdmodel "${shapes[@]}" --emit graph
expect_text "compile: algorithms in HTML" 0 out '<td>(gemm|conv) ' "$kiln" compile main.pdmodel "${shapes[@]}" --emit html
expect "deterministic" 0 "$kiln" compile main.pdmodel "${shapes[@]}" --deterministic
for verb in compile bench; do
  expect_error "$verb: tuned and deterministic" E-ARG-001 'exclude each other' "$kiln" $verb main.pdmodel "${shapes[@]}" --tune --deterministic
done

# ---- train, eval, run ----
expect_text "train" 0 out '^epoch 5/5 loss [0-9.]+ acc [0-9.]+ test_loss [0-9.]+ test_acc 1\.0000 [0-9,]+ img/s$' \
  "${train[@]}" "${feeds[@]}" "${tests[@]}" --epochs 5 --save run --log log --trace trace.json
valid_json "trace JSON" trace.json
whole=$(sum_of run/params.pdiparams)
expect_text "eval" 0 out '^acc 1\.0' "$kiln" eval --main "$data/net_test.kl" --params run "${feeds[@]}" --batch 100 --fetch loss,acc
expect "eval --json" 0 "$kiln" eval --main "$data/net_test.kl" --params run/params.pdiparams "${feeds[@]}" --fetch acc --json &&
  valid_json "eval JSON" out
params=(--params run/params.pdiparams)
expect_text "run" 0 out '^scores float32 \[500, 4\]' "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch scores
expect "run: to a file" 0 "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch scores=a.npy --threads 1
expect "run: .npy feeds" 0 "$kiln" run "$data/net_test.kl" "${params[@]}" --feed x=x.npy --feed y=y.npy --fetch scores=b.npy --threads 2
expect "run: gzipped feeds" 0 "$kiln" run "$data/net_test.kl" "${params[@]}" --feed x=x.idx.gz:scale=1/255 --feed y=y.idx.gz --fetch scores=c.npy
same "IDX and .npy give the same" a.npy b.npy
for i in 1 2 3; do
  expect "run: tuned, $i threads" 0 "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch scores=tuned$i.npy --threads $i --tune
done
same "a tuned run is the same for any number of threads" tuned1.npy tuned2.npy
same "and for more" tuned1.npy tuned3.npy
expect_error "run: tuned and deterministic" E-ARG-001 'exclude each other' "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --tune --deterministic
expect "run: deterministic" 0 "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch scores=rule.npy --deterministic
same "by the rule alone it is as before" a.npy rule.npy
same "gzipped feeds give the same" a.npy c.npy
expect_text "run --profile" 0 out '^kernel ' "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch loss --profile
expect_text "run --interpret" 0 out '^acc ' "$kiln" run "$data/net_test.kl" "${params[@]}" "${feeds[@]}" --fetch acc --interpret
expect_text "train --profile" 0 out 'momentum' "${train[@]}" "${feeds[@]}" --steps 3 --profile
expect_text "the last batch may be smaller" 0 out 'epoch 1/1' "${train[@]}" "${feeds[@]}" --epochs 1 --batch 300
expect_text "drop-last" 0 out 'epoch 1/1' "${train[@]}" "${feeds[@]}" --epochs 1 --batch 300 --drop-last
expect_error "no batch left" E-DAT-001 'make no batch' "${train[@]}" "${feeds[@]}" --epochs 1 --batch 600 --drop-last
expect_text "bench" 0 out '^median ' "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=64x16 --feed-shape y=64x1 --fetch loss --reps 20
expect "bench --json" 0 "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=8x16 --feed-shape y=8x1 --fetch loss --reps 5 --json &&
  valid_json "bench JSON" out
expect_text "bench --start --profile" 0 out 'of bound' "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=8x16 --feed-shape y=8x1 --reps 5 --profile --start
grep -q 'from exec() to the first result' out && pass "time to the first result" || bad "time to the first result" "$(cat out)"
expect "bench --profile --json" 0 "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=8x16 --feed-shape y=8x1 --reps 5 --profile --start --json &&
  valid_json "bench profile JSON" out
expect_text "bench: more threads than cores" 0 out '^median ' timeout 60 "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=8x16 --feed-shape y=8x1 --threads 257 --reps 5
expect_text "bench --once" 0 out '^[L-]$' "$kiln" bench main.pdmodel --startup "$data/net_startup.kl" --once
expect_text "verify" 0 out 'all checks passed' "$kiln" verify main.pdmodel --startup "$data/net_startup.kl" --feed-shape x=9x16 --feed-shape y=9x1
sed 's/value=1.0}/value=1.001}/' "$data/net_main.kl" >wrong.kl
expect_text "verify: a gradient that is 0.1 % off" 1 out '^BAD  gradient' "$kiln" verify wrong.kl --startup "$data/net_startup.kl" --feed-shape x=9x16 --feed-shape y=9x1

# ---- wrong data ----
expect_error "misspelt feed" E-DAT-001 'Did you mean' "${train[@]}" --feed xx=x.idx --feed y=y.idx --epochs 1
expect_error "missing feed" E-DAT-001 '"y" is not fed' "${train[@]}" --feed x=x.idx --epochs 1
expect_error "wrong shape" E-DAT-001 '16' "${train[@]}" --feed x=y.idx --feed y=y.idx --epochs 1
expect_error "row counts differ" E-DAT-001 'rows' bash -c 'head -c 8 y.idx | perl -pe "s/.{4}\$/pack(q(N),10)/se" >short.idx; tail -c 10 y.idx >>short.idx; shift 0; exec "$@"' - "${train[@]}" --feed x=x.idx --feed y=short.idx --epochs 1
expect_error "no such data file" E-IO-001 'gone.idx' "${train[@]}" --feed x=gone.idx --feed y=y.idx --epochs 1
expect_error "damaged data file" E-DAT-003 'cut.npy' bash -c 'head -c 900 x.npy >cut.npy; exec "$@"' - "${train[@]}" --feed x=cut.npy --feed y=y.idx --epochs 1
expect_error "damaged gzip" E-DAT-003 'cut.gz' bash -c 'head -c 900 x.idx.gz >cut.gz; exec "$@"' - "${train[@]}" --feed x=cut.gz --feed y=y.idx --epochs 1
expect_error "not an array" E-DAT-003 'net_main' "${train[@]}" --feed x="$data/net_main.kl" --feed y=y.idx --epochs 1
expect_error "label out of range" E-DAT-002 'value 4 at element .* is outside 0\.\.3' "${train[@]}" --feed x=x.npy --feed y=bad.npy --epochs 1
grep -q 'net.c:[89]' err && pass "it names the line of the program" || bad "it names the line of the program" "no net.c:N"
expect_error "fetch does not exist" E-RUN-002 'lossy' "${train[@]}" "${feeds[@]}" --fetch lossy --epochs 1
expect_error "fetch is not a number" E-RUN-002 'not one number' "${train[@]}" "${feeds[@]}" --fetch scores --epochs 1
expect_error "no parameters" E-RUN-001 '--params' "$kiln" run "$data/net_test.kl" "${feeds[@]}" --fetch acc
sed 's/relu(X=fc_0.tmp_1)/log(X=fc_0.tmp_1)/; s/X@GRAD=fc_0.tmp_1@GRAD = relu_grad(Out=fc_0.tmp_2, /X@GRAD=fc_0.tmp_1@GRAD = log_grad(X=fc_0.tmp_1, /' "$data/net_main.kl" >nan.kl
expect_error "check-nan names the operator" E-NUM-001 'operator `log` became' "$kiln" train --startup "$data/net_startup.kl" --main nan.kl "${feeds[@]}" --epochs 1 --fetch loss --check-nan
grep -q 'net.c:6' err && pass "and its line" || bad "and its line" "no net.c:6"

# ---- parameters ----
cp run/params.pdiparams good.pdiparams
size=$(stat -c %s good.pdiparams)
crashes=0 broken=0
for i in $(seq 0 40); do
  head -c $((size * i / 41)) good.pdiparams >cut.pdiparams
  "$kiln" eval --main "$data/net_test.kl" --params cut.pdiparams "${feeds[@]}" --fetch acc >out 2>err
  rc=$?
  [ $rc -eq 1 ] && grep -qE '^error\[E-PAR-00[14]' err && broken=$((broken + 1))
  [ $rc -gt 1 ] && crashes=$((crashes + 1))
done
[ $crashes -eq 0 ] && [ $broken -eq 41 ] && pass "truncated parameters" || bad "truncated parameters" "$crashes crashes, $broken of 41 refused"
expect_error "parameters with more behind" E-PAR-003 'left over' bash -c 'cat good.pdiparams good.pdiparams >twice.pdiparams; exec "$@"' - \
  "$kiln" eval --main "$data/net_test.kl" --params twice.pdiparams "${feeds[@]}" --fetch acc
expect_error "parameters of another kind" E-PAR-001 '' "$kiln" eval --main "$data/net_test.kl" --params x.npy "${feeds[@]}" --fetch acc

# ---- the same bits: threads, interruption ----
for n in 1 2 3; do
  "${train[@]}" "${feeds[@]}" --epochs 5 --threads $n --save "run$n" >/dev/null 2>err
  [ "$(sum_of "run$n/params.pdiparams")" = "$whole" ] && pass "$n threads give the same parameters" || bad "$n threads give the same parameters" "another SHA-256"
done
small=("${train[@]}" "${feeds[@]}" --batch 8 --epochs 5)
"${small[@]}" --save whole >/dev/null 2>err
whole=$(sum_of whole/params.pdiparams)
interrupted=0
for attempt in 1 2 3 4 5 6; do
  rm -rf cut
  "${small[@]}" --save cut --save-every 3 >/dev/null 2>&1 &
  pid=$!
  # killed once there are two checkpoints, at no particular moment
  while kill -0 $pid 2>/dev/null && [ "$(ls -d cut/step-* 2>/dev/null | wc -l)" -lt 2 ]; do sleep 0.005; done
  kill -9 $pid 2>/dev/null
  wait $pid 2>/dev/null
  [ -f cut/params.pdiparams ] || { interrupted=1; break; }
done
ls -A cut | sed 's/^/  left: /'
expect_text "resume after kill -9" 0 err 'resumed at epoch' "${small[@]}" --save cut --resume cut
if [ $interrupted -eq 1 ] && [ "$(sum_of cut/params.pdiparams)" = "$whole" ]; then pass "resumed = straight through"
else bad "resumed = straight through" "killed: $interrupted; SHA-256 $(sum_of cut/params.pdiparams) instead of $whole"; fi
mkdir -p half/step-9999999999 && cp cut/step-*/extra half/step-9999999999/ 2>/dev/null
cp -r "$(ls -d cut/step-* | tail -n 1)" half/
expect_text "an incomplete checkpoint is passed over" 0 err 'resumed at epoch' "${small[@]}" --resume half
ls -A cut | grep -q writing && bad "no leftovers of the killed run" "$(ls -A cut)" || pass "no leftovers of the killed run"
expect_error "a new run into a folder with checkpoints" E-CKP-002 '--resume cut' "${small[@]}" --save cut
expect_error "nothing to resume" E-CKP-001 'no complete checkpoint' "${train[@]}" "${feeds[@]}" --epochs 6 --resume nowhere
cp -r cut moved
for at in 'epoch 1 row -8 step 70 rows 8' 'epoch 1 row 501 step 70 rows 8' 'epoch -1 row 8 step 70 rows 8' 'epoch 9223372036854775807 row 8 step 70 rows 8' 'epoch 1 row 8 step 70 rows -1'; do
  perl -e '
    sub crc { my $c = 0xffffffff; for (unpack "C*", $_[0]) { $c ^= $_; $c = $c & 1 ? ($c >> 1) ^ 0xedb88320 : $c >> 1 for 1 .. 8 } $c ^ 0xffffffff }
    local $/;
    for my $dir (glob "moved/step-*") {
      open F, "<", "$dir/extra"; my $x = <F>; open F, "<", "$dir/manifest"; my $m = <F>;
      $x =~ s/^epoch .*?\srows -?\d+/$ARGV[0]/s or die; my $n = length $x; my $crc = sprintf "%x", crc($x);
      $m =~ s/extra \d+ [0-9a-f]+/extra $n $crc/ or die;
      open F, ">", "$dir/extra"; print F $x; open F, ">", "$dir/manifest"; print F $m; close F
    }' "$at"
  expect_error "resume at ${at% step*}" E-CKP-001 'no place in the data' "${small[@]}" --resume moved
done
expect_error "resume with another batch" E-CKP-001 '--batch 8' "${train[@]}" "${feeds[@]}" --batch 32 --epochs 6 --resume cut

# ---- TensorBoard: each record's length and data carry their masked CRC-32C ----
perl -e '
  sub crc { my $c = 0xffffffff; for (unpack "C*", $_[0]) { $c ^= $_; $c = $c & 1 ? ($c >> 1) ^ 0x82f63b78 : $c >> 1 for 1 .. 8 }
            $c ^= 0xffffffff; ((($c >> 15) | ($c << 17)) + 0xa282ead8) & 0xffffffff }
  local $/; my ($n, $tags) = (0, 0);
  open F, "<", (glob "log/*tfevents*")[0] or die "no event file"; binmode F; my $d = <F>; my $at = 0;
  while ($at < length $d) {
    my ($len) = unpack "Q<", substr $d, $at, 8;
    die "length of record $n" if unpack("V", substr $d, $at + 8, 4) != crc(substr $d, $at, 8);
    my $e = substr $d, $at + 12, $len;
    die "data of record $n" if unpack("V", substr $d, $at + 12 + $len, 4) != crc($e);
    $tags++ if $e =~ m{train/loss|test/acc};
    $at += 16 + $len; $n++;
  }
  print "$n records\n"; exit !($n > 80 && $tags > 40)' >out 2>err && pass "TensorBoard file" || bad "TensorBoard file" "records"

# ---- places that cannot be written ----
expect_error "unwritable: no such folder" E-IO-002 'nowhere' "$kiln" convert main.kl -o nowhere/x.pdmodel
echo precious >kept.pdmodel
if [ "$(id -u)" != 0 ]; then
  mkdir closed && cp kept.pdmodel closed/x.pdmodel && chmod 555 closed
  expect_error "unwritable: folder without permission" E-IO-002 'closed' "$kiln" convert main.kl -o closed/x.pdmodel
  same "what stood there stays" closed/x.pdmodel kept.pdmodel
fi
touch notadir
expect_error "train: --save is no folder" E-IO-002 'notadir' "${train[@]}" "${feeds[@]}" --epochs 1 --save notadir/run
expect_error "train: --log is no folder" E-IO-002 'notadir' "${train[@]}" "${feeds[@]}" --epochs 1 --log notadir/log
"$kiln" dump main.pdmodel >/dev/full 2>err
rc=$?
[ $rc -eq 1 ] && grep -q 'E-IO-002' err && pass "standard output is full" || bad "standard output is full" "exit $rc"
for args in --help --version 'ops --markdown' 'ops --help'; do
  # shellcheck disable=SC2086
  "$kiln" $args >/dev/full 2>err
  rc=$?
  [ $rc -eq 1 ] && grep -q 'E-IO-002' err && pass "standard output is full: $args" || bad "standard output is full: $args" "exit $rc"
done
"${train[@]}" "${feeds[@]}" --epochs 1 >/dev/full 2>err
rc=$?
[ $rc -eq 1 ] && grep -q 'E-IO-002' err && pass "standard output is full: train" || bad "standard output is full: train" "exit $rc"
for to in /dev/full '&-'; do # an error that nobody can read still ends the program
  eval "timeout 20 '$kiln' dump none.pdmodel 2>$to" >out
  rc=$?
  [ $rc -eq 1 ] && pass "standard error is $to" || bad "standard error is $to" "exit $rc"
done
mkdir limit
(ulimit -f 1 && exec "$kiln" convert main.kl -o limit/x.pdmodel) 2>err
rc=$?
[ $rc -eq 1 ] && grep -q 'E-IO-002' err && [ -z "$(ls -A limit)" ] && pass "a limit on the size of files" || bad "a limit on the size of files" "exit $rc"
"$kiln" convert main.kl -o held.pdmodel >&- 2>&- <&-
same "closed streams reach no file" held.pdmodel main.pdmodel
mkdir small
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=8k none small 2>/dev/null; then
  cp kept.pdmodel small/x.pdmodel
  expect_error "disk full" E-IO-002 'small' "$kiln" convert main.kl -o small/x.pdmodel
  same "a full disk leaves what stood there" small/x.pdmodel kept.pdmodel
  [ "$(ls -A small | wc -l)" -eq 1 ] && pass "and nothing half-written" || bad "and nothing half-written" "$(ls -A small)"
  expect_error "disk full in a checkpoint" E-IO-002 'small' "${train[@]}" "${feeds[@]}" --steps 4 --save small/run --save-every 2
else
  echo "skipped: disk full (cannot mount a tmpfs)"
fi

# ---- OpenBLAS ----
mkdir broken && echo none >broken/libopenblas.so.0
cat >singular.kl <<'END'
program version 0
block 0 parent -1 {
  var r float32 [-1, 16]
  var s float32 [-1]
  var u float32 [-1, -1]
  var v float32 [-1, -1]
  var x float32 [-1, 16] feed stop_gradient

  r = relu(X=x)
  S=s, U=u, VH=v = svd(X=r)
}
END
singular=("$kiln" run singular.kl --feed x=x.npy --fetch)
expect "singular values" 0 "${singular[@]}" s
export LD_LIBRARY_PATH=$tmp/broken
expect "OpenBLAS is not opened where it is not needed" 0 "${singular[@]}" r
expect_error "OpenBLAS is missing" E-GEN-004 'libopenblas' "${singular[@]}" s
expect_text "info without OpenBLAS" 0 out '^blas: none' "$kiln" info
cat >square.kl <<'END'
program version 0
block 0 parent -1 {
  var r float32 [256, 256]
  var x float32 [256, 256] feed stop_gradient

  r = matmul_v2(X=x, Y=x)
}
END
expect "tuning passes over OpenBLAS where it is missing" 0 "$kiln" bench square.kl --feed-shape x=256x256 --fetch r --reps 1 --tune
unset LD_LIBRARY_PATH

# ---- compiled code ----
run=("$kiln" run "$data/net_test.kl" --params run/params.pdiparams "${feeds[@]}")
export KILN_CACHE_DIR=$tmp/code
expect "run with an empty cache" 0 "${run[@]}" --fetch scores=first.npy
expect_text "cache" 0 out "^folder   $tmp/code$" "$kiln" cache
n=$(ls code | wc -l)
grep -q "^entries  $n$" out && [ "$n" -gt 0 ] && pass "cache counts" || bad "cache counts" "$n files"
expect "cache --json" 0 "$kiln" cache --json && valid_json "cache JSON" out
export KILN_CODEGEN=/nowhere/module.so
expect "what is cached needs no code generator" 0 "${run[@]}" --fetch scores=again.npy
same "and is the same" again.npy first.npy
expect_text "info without a code generator" 0 out '^llvm: none' "$kiln" info
KILN_CACHE=0 expect_error "a missing code generator" E-GEN-003 'no such file' "${run[@]}"
touch notcode && KILN_CODEGEN=notcode KILN_CACHE=0 expect_error "a file that is none" E-GEN-003 'notcode' "${run[@]}"
KILN_CODEGEN=libm.so.6 KILN_CACHE=0 expect_error "another library" E-GEN-003 'KILN_CODEGEN' "${run[@]}"
unset KILN_CODEGEN
for f in code/*; do echo damaged >"$f"; done
expect "damaged entries" 0 "${run[@]}" --fetch scores=again.npy
same "give the same" again.npy first.npy
grep -lq damaged code/* && bad "they are replaced" "$(ls code)" || pass "they are replaced"
expect "cache --clear" 0 "$kiln" cache --clear
[ -z "$(ls -A code)" ] && pass "it is empty then" || bad "it is empty then" "$(ls -A code)"
pids=() good=0
for i in 1 2 3 4 5 6; do "${run[@]}" --fetch scores=at$i.npy >/dev/null 2>at$i.err & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" && good=$((good + 1)); done
for i in 1 2 3 4 5 6; do cmp -s at$i.npy first.npy || good=-9; done
[ $good -eq 6 ] && [ "$(ls code | wc -l)" -eq "$n" ] && pass "six processes at once" ||
  bad "six processes at once" "$good good; $(ls code); $(cat at?.err)"
touch nofolder
for place in nofolder nofolder/below /proc/none; do
  KILN_CACHE_DIR=$place expect "a cache at $place" 0 "${run[@]}"
done
if mountpoint -q small; then
  rm -rf small/* && KILN_CACHE_DIR=$tmp/small/code expect "a cache on a full disk" 0 "${run[@]}"
fi
if [ "$(id -u)" != 0 ]; then
  mkdir readonly && chmod 555 readonly
  KILN_CACHE_DIR=$tmp/readonly expect "a cache that cannot be written" 0 "${run[@]}"
fi
export KILN_CACHE_DIR=$tmp/cache

# ---- plug-ins ----
plugin=$build/examples/custom_relu.so
expect_text "plug-in" 0 out 'custom operator' "$kiln" --plugin "$plugin" ops custom_relu
sed 's/= relu(X=/= custom_relu(X=/; s/relu_grad(Out=fc_0.tmp_2, /custom_relu_grad(X=fc_0.tmp_1, Out=fc_0.tmp_2, /' "$data/net_main.kl" >custom.kl
expect_error "without it the operator is unknown" E-OPR-001 'custom_relu' "$kiln" train --startup "$data/net_startup.kl" --main custom.kl "${feeds[@]}" --epochs 1
expect "train with it" 0 "$kiln" --plugin "$plugin" train --startup "$data/net_startup.kl" --main custom.kl "${feeds[@]}" --batch 64 --fetch loss,acc --shuffle --epochs 5 --save runc
same "as the built-in operator" runc/params.pdiparams run/params.pdiparams
expect_error "no such plug-in" E-PLG-001 'gone.so' "$kiln" --plugin ./gone.so info
expect_error "not a plug-in" E-PLG-001 'kiln_plugin' "$kiln" --plugin libm.so.6 info

# ---- installation ----
if nm "$kiln" | grep -q __asan_init; then
  echo "skipped: installation (a sanitizer build)"
else
  expect "make install" 0 env MAKEFLAGS= make -s -C "$data/../.." B="$build" install DESTDIR="$tmp/root" PREFIX=/usr
  for f in bin/kiln lib/libkiln.so lib/libkiln.so.0 lib/libkiln.a lib/libkiln-codegen.so include/kiln.h lib/pkgconfig/kiln.pc share/man/man1/kiln.1; do
    [ -e "root/usr/$f" ] && pass "installed $f" || bad "installed $f" "not there"
  done
  KILN_CACHE=0 expect "the installed kiln generates code" 0 root/usr/bin/kiln run "${run[@]:2}"
  hidden=$(nm -D --defined-only root/usr/lib/libkiln.so | awk '$3 !~ /^(kl_|_)/ {print $3}' | head -n 5)
  [ -z "$hidden" ] && pass "only kl_ names are exported" || bad "only kl_ names are exported" "$hidden"
  objdump -p root/usr/lib/libkiln.so 2>/dev/null | grep -q 'SONAME *libkiln.so.0' && pass "SONAME" || bad "SONAME" "none"
  export PKG_CONFIG_PATH=$tmp/root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tmp/root
  expect "a program against the installed header" 0 bash -c \
    'cc -std=c17 -Wall -Wextra -Wpedantic -Werror -o xor "$0"/../../frontend/examples/xor.c $(pkg-config --cflags --libs kiln)' "$data"
  LD_LIBRARY_PATH=$tmp/root/usr/lib expect_text "runs" 0 out '^loss [0-9.e-]+$' ./xor
  printf '#include <kiln.h>\nint main() { return kl_failed(); }\n' >h.cc
  if command -v c++ >/dev/null; then
    expect "the header is C++ too" 0 c++ -std=c++17 -Wall -Wextra -fsyntax-only -I"$tmp/root/usr/include" h.cc
  fi
fi
[ $fails -eq 0 ]
