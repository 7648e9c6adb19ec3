#!/bin/bash
# run.sh [SECONDS]: libFuzzer (clang) on the readers of files, under AddressSanitizer and UBSan, from the fixtures on. Objects,
# the corpus and what breaks are in build/fuzz. `make fuzz` calls it.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60} dir=build/fuzz
mkdir -p $dir/o $dir/seeds $dir/corpus
flags="-std=c17 -g -O1 -D_GNU_SOURCE -DKILN_VERSION=\"0\" -Ibuild/gen -fsanitize=fuzzer-no-link,address,undefined
       -fno-sanitize-recover=undefined -ffp-contract=off -w"
newest=$(ls -t ir/*.h ir/*.def ir/ops/*.h ir/ops/*.def | head -n 1)
for f in ir/*.c ir/ops/*.c build/gen/kiln.pb-c.c tests/fuzz/fuzz.c; do
  o=$dir/o/${f//\//_}.o
  [ "$o" -nt "$f" ] && [ "$o" -nt "$newest" ] || echo "$f -o $o"
done | xargs -r -P "$(nproc)" -L 1 clang $flags -c
clang -fsanitize=fuzzer,address,undefined -o $dir/fuzz $dir/o/*.o -lprotobuf-c -lz -lm -lpthread
seed() { # FORM FILE...
  local form=$1 f
  shift
  for f in "$@"; do
    { printf "\\x0$form"; cat "$f"; } >"$dir/seeds/$form-$(basename "$(dirname "$f")")-$(basename "$f")"
  done
}
seed 0 tests/fixtures/*/*.pdmodel tests/data/static/*.pdmodel
seed 1 tests/data/*.kl
seed 2 tests/fixtures/*/*.pdiparams tests/data/static/*.pdiparams
seed 3 tests/data/static/*.pdparams tests/data/static/*.pdopt
cd $dir
exec ./fuzz -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1500 -max_len=30000 -verbosity=0 -print_final_stats=1 corpus seeds
