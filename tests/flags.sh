#!/bin/bash
# flags.sh BUILD: the command line's flags one by one, where cli.sh does not use them: what they accept, which combinations are
# refused, and what happens without them. The network is tests/data/net_*.kl, the data are made here.
. "$(dirname "$0")/expect.sh" "$@"
data=$tests/data

perl -e '
  sub npy { my ($name, $type, $dims, $bytes) = @_;
    my $h = "{\x27descr\x27: \x27$type\x27, \x27fortran_order\x27: False, \x27shape\x27: ($dims), }";
    $h .= " " while (11 + length $h) % 64;
    open my $o, ">", $name or die; binmode $o;
    print $o "\x93NUMPY\1\0", pack("v", 1 + length $h), "$h\n", $bytes }
  my @x = map { sin($_) } 1 .. 50 * 16;
  npy("x.npy", "<f4", "50, 16", pack("f<*", @x));
  npy("y.npy", "<i8", "50, 1", pack("q<*", map { $_ % 4 } 1 .. 50));
  npy("no_x.npy", "<f4", "0, 16", "");
  npy("no_y.npy", "<i8", "0, 1", "");
  $x[36] = "nan"; npy("nan.npy", "<f4", "50, 16", pack("f<*", @x));
  # 1500 results, in the order of their columns
  my $n = 1500;
  open my $o, ">", "many.kl" or die;
  print $o "program version 0\nblock 0 parent -1 {\n  var feed feed_minibatch persistable\n  var fetch fetch_list persistable\n";
  print $o "  var x float32 [-1, 16] feed\n", (map { "  var y$_ float32 [-1, 16]\n" } 0 .. $n - 1), "  Out=x = feed(X=feed) {col=0}\n";
  print $o "  Out=y$_ = scale(X=x) {scale=$_.0}\n" for 0 .. $n - 1;
  print $o "  Out=fetch = fetch(X=y$_) {col=$_}\n" for 0 .. $n - 1;
  print $o "}\n"'
feeds=(--feed x=x.npy --feed y=y.npy)
train=("$kiln" train --startup "$data/net_startup.kl" --main "$data/net_main.kl" "${feeds[@]}" --batch 16)
usage() { # NAME PATTERN COMMAND...: exit 2 and one line that says why
  expect_text "$1" 2 err "^error\[E-ARG-001\]: .*$2" "${@:3}"
  [ "$(wc -l <err)" -eq 1 ] || bad "$1" "more than one line"
}

# ---- before the verb, and help ----
expect_text "error format after a space" 1 err '^\{"code": "E-IO-001"' "$kiln" --error-format json dump none
expect_text "error format after the verb" 1 err '^\{"code": "E-IO-001"' "$kiln" dump none --error-format json
expect_text "error format after a wrong flag" 2 err '^\{"code": "E-ARG-001"' "$kiln" dump none --wrong --error-format json
expect_text "error format after a wrong verb" 2 err '^\{"code": "E-ARG-001"' "$kiln" dumb none --error-format=json
usage "error format: neither" 'is not text or json' "$kiln" --error-format=xml dump none
usage "error format: nothing" 'needs a value' "$kiln" --error-format
usage "plug-in: nothing" 'needs a value' "$kiln" --plugin
usage "a flag before the verb" 'unknown flag "-x"' "$kiln" -x
"$kiln" train --help >want
expect "help VERB" 0 "$kiln" help train
same "is VERB --help" out want
usage "help: no such verb" 'did you mean train' "$kiln" help trian
expect_text "explain in lower case" 0 out '^E-DAT-002' "$kiln" explain dat-002
expect_text "info --json has numbers" 0 out '"cores": [0-9]+,' "$kiln" info --json

# ---- train ----
usage "test data without a test program" 'go together' "${train[@]}" --test-feed x=x.npy
usage "a test program without data" 'go together' "${train[@]}" --test "$data/net_test.kl"
usage "save-every without save" 'needs --save' "${train[@]}" --save-every 2
expect_text "no rows to test on" 1 err 'E-DAT-001.*"no_x.npy" has no rows' "${train[@]}" --test "$data/net_test.kl" --test-feed x=no_x.npy --test-feed y=no_y.npy
# 50 rows are four steps: the seventh is in the middle of the second epoch
expect "train: eleven steps" 0 "${train[@]}" --steps 11 --shuffle --fetch loss,acc --save whole
grep -o 'loss.*acc [0-9.]*' out >want
expect "train: seven of them" 0 "${train[@]}" --steps 7 --shuffle --fetch loss,acc --save part
for fetch in loss,acc acc,loss acc; do
  rm -rf more && cp -r part more
  expect "the other four, with $fetch" 0 "${train[@]}" --steps 11 --shuffle --fetch $fetch --resume more --save more
  same "end as all at once" more/params.pdiparams whole/params.pdiparams
  [ $fetch = loss,acc ] && sed -n 's/.*\(loss.*acc [0-9.]*\).*/\1/p' out | diff - <(tail -n +2 want) >diff &&
    pass "and say the same" || [ $fetch != loss,acc ] || bad "and say the same" "$(cat diff)"
done
expect_text "another metric starts where it is added" 0 out '^epoch 2/3 loss [0-9.]+ ' "${train[@]}" --steps 11 --shuffle --fetch loss --resume part
if command -v script >/dev/null; then # names longer than a line, on a terminal
  long=$(printf 'l%.0s' $(seq 300))
  "$kiln" edit "$data/net_main.kl" --rename "loss=$long" -o long.kl >out 2>err
  expect_text "long names in the progress line" 0 out 'epoch 1/1' script -qec \
    "'$kiln' train --startup '$data/net_startup.kl' --main long.kl --feed x=x.npy --feed y=y.npy --fetch $long" /dev/null
fi

# ---- eval ----
eval=("$kiln" eval --params whole --fetch loss,acc)
expect "eval" 0 "${eval[@]}" --main "$data/net_test.kl" "${feeds[@]}"
cp out want
expect_text "a program that trains is evaluated, not trained" 0 err 'operators .* are left out' "${eval[@]}" --main "$data/net_main.kl" "${feeds[@]}"
same "with the same means" out want
expect "with the state of a checkpoint" 0 "${eval[@]}" --main "$data/net_main.kl" "${feeds[@]}" --params whole/step-0000000011
same "and again the same means" out want
mkdir half && cp -r whole/step-0000000011 half
expect_text "the folder of an unfinished run" 1 err 'half/step-NNNNNNNNNN' "${eval[@]}" --main "$data/net_test.kl" "${feeds[@]}" --params half
expect_text "eval: no rows" 1 err 'E-DAT-001.*has no rows' "${eval[@]}" --main "$data/net_test.kl" --feed x=no_x.npy --feed y=no_y.npy
expect "eval: a mean that is no number" 0 "${eval[@]}" --main "$data/net_test.kl" --feed x=nan.npy --feed y=y.npy --json
valid_json "eval: NaN as JSON" out
grep -q '"loss": null' out && pass "is null" || bad "is null" "-"
expect_text "eval: nothing to fetch" 2 err 'names nothing' "${eval[@]}" --main "$data/net_test.kl" "${feeds[@]}" --fetch ,

# ---- run ----
run=("$kiln" run "$data/net_test.kl" --params whole --feed x=x.npy)
expect "several fetches in one" 0 "${run[@]}" --feed y=y.npy --fetch loss,acc
cp out want
expect "several fetches one by one" 0 "${run[@]}" --feed y=y.npy --fetch loss --fetch acc
same "are the same" out want
expect "run --json" 0 "${run[@]}" --feed y=y.npy --fetch loss,acc --fetch scores=s.npy --json
valid_json "results as JSON" out
grep -q '"name": "scores", "dtype": "float32", "shape": \[50, 4\], "file": "s.npy"' out && pass "a file" || bad "a file" "$(cat out)"
[ "$(python3 -c "import json; r = json.load(open('out'))['results']; print(*(f\"{x['name']} {x['values'][0]:.6g}\" for x in r[:2]))")" = \
  "$(paste -d' ' - - <want | awk '{print $1, $NF}' | paste -sd' ')" ] && pass "the same numbers" || bad "the same numbers" "$(cat out want)"
expect "run --json --profile" 0 "${run[@]}" --feed y=y.npy --fetch loss --profile --json
valid_json "results and profile as JSON" out
expect "run --json of no number" 0 "$kiln" run "$data/net_test.kl" --params whole --feed x=nan.npy --feed y=y.npy --fetch loss --json
valid_json "NaN as JSON" out
grep -q '"values": \[null\]' out && pass "is null too" || bad "is null too" "$(cat out)"
expect_text "a misspelt fetch" 1 err 'Did you mean "scores"' "${run[@]}" --fetch score
expect_text "a fetch without a file" 2 err 'names no file' "${run[@]}" --fetch scores=
expect_text "a fetch of nothing" 2 err 'names nothing' "${run[@]}" --fetch ,
for how in '' --interpret; do
  expect_text "check-nan of what can be computed $how" 0 out '^scores' "${run[@]}" --fetch scores --check-nan $how
done
expect "run: all of many results" 0 "$kiln" run many.kl --feed x=x.npy
[ "$(grep -c '^y' out)" = 1500 ] && pass "are printed" || bad "are printed" "$(grep -c '^y' out)"
expect "edit: many results" 0 "$kiln" edit many.kl --inputs x -o same.kl
[ "$(grep -c 'fetch(' same.kl)" = 1500 ] && pass "all are kept" || bad "all are kept" "$(grep -c 'fetch(' same.kl)"

# ---- shapes of inputs ----
expect_text "the batch of one input is that of the others" 0 out 'accuracy +float32' "$kiln" summary "$data/net_main.kl" --feed-shape x=8x16
expect_text "unless others are given" 1 err 'E-SHP-006' "$kiln" summary "$data/net_main.kl" --feed-shape x=8x16 --feed-shape y=4x1
expect_text "bench: a program without updates and fetches has results" 0 out '^kernels +[2-9]' "$kiln" bench "$data/net_test.kl" --params whole --reps 2
[ $fails -eq 0 ]
