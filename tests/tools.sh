#!/bin/bash
# tools.sh BUILD: edit, diff, convert and `ops --missing` from outside, on the programs that PaddlePaddle wrote
# (tests/fixtures/inference, tests/data/static). A line "ok NAME" or "FAILED NAME" per check.
. "$(dirname "$0")/expect.sh" "$@"
fixture=$tests/fixtures/inference
static=$tests/data/static

cp "$fixture/main.pdmodel" model.pdmodel
cp "$fixture/first.pdiparams" model.pdiparams
perl -e 'open my $o, ">", "x.npy"; binmode $o;
  my $h = "{\x27descr\x27: \x27<f4\x27, \x27fortran_order\x27: False, \x27shape\x27: (2, 3, 9, 9), }";
  $h .= " " while (11 + length $h) % 64;
  print $o "\x93NUMPY\1\0", pack("v", 1 + length $h), "$h\n", pack("f<*", map { sin($_) } 1 .. 486)'

# ---- convert ----
expect "convert takes the parameters along" 0 "$kiln" convert model.pdmodel -o text.kl
expect "convert back" 0 "$kiln" convert text.kl -o back.pdmodel
expect "once more" 0 "$kiln" convert back.pdmodel -o again.pdmodel
same "the parameters survive" text.pdiparams back.pdiparams
same "the program survives" back.pdmodel again.pdmodel
expect "into a folder" 0 bash -c "mkdir folder && exec '$kiln' convert model.pdmodel -o folder/__model__"
[ -f folder/__params__ ] && pass "as __params__" || bad "as __params__" "$(ls folder)"
expect "a file for each variable" 0 bash -c "mkdir each && exec '$kiln' convert folder -o each/__model__ --separate"
n=$(ls each | wc -l)
[ "$n" -gt 5 ] && pass "there they are" || bad "there they are" "$n files"
for form in model.pdmodel text.kl back.pdmodel folder each; do
  expect "run $form" 0 "$kiln" run $form --feed x=x.npy
  mv out "out.$(basename $form)"
  same "$form computes the same" out.model.pdmodel "out.$(basename $form)"
done
expect_text "ONNX is not written" 1 err 'E-IO-003' "$kiln" convert model.pdmodel -o model.onnx
expect_text "another format" 2 err 'neither' "$kiln" convert model.pdmodel -o model.txt
expect_text "a damaged dictionary" 1 err 'E-PAR-004' bash -c "head -c 700 '$static/p4.pdparams' >cut.pdparams; exec '$kiln' convert '$static/net.pdmodel' --params cut.pdparams -o x.pdmodel"
[ ! -e x.pdmodel ] && pass "leaves no program" || bad "leaves no program" "x.pdmodel is there"

# ---- a program that trains ----
cp "$static/net.pdmodel" net.pdmodel
cp "$static/p4.pdparams" net.pdparams
perl -e 'open my $o, ">", "v.npy"; binmode $o;
  my $h = "{\x27descr\x27: \x27<f4\x27, \x27fortran_order\x27: False, \x27shape\x27: (4, 6), }";
  $h .= " " while (11 + length $h) % 64;
  print $o "\x93NUMPY\1\0", pack("v", 1 + length $h), "$h\n", pack("f<*", map { cos($_) } 1 .. 24)'
expect_text "run cuts a program that trains" 0 err 'note: .* 1[0-9] operators of its backward pass' "$kiln" run net.pdmodel --feed x=v.npy
expect_text "and prints what the feeds reach" 0 out 'float32 \[4, 3\]' "$kiln" run net.pdmodel --feed x=v.npy
expect "its optimiser state is not needed" 0 "$kiln" edit net.pdmodel --for-test --outputs softmax_0.tmp_0 -o test.pdmodel
expect_text "edit --for-test" 0 out 'float32 \[4, 3\]' "$kiln" run test.pdmodel --feed x=v.npy
expect_text "the state is in the .pdopt file" 1 err 'E-PAR-006' "$kiln" convert net.pdmodel -o all.pdmodel
cp "$static/p4.pdopt" net.pdopt
expect "beside the .pdparams file" 0 "$kiln" convert net.pdmodel -o all.pdmodel
same "all of it" all.pdiparams "$static/all.pdiparams"

# ---- ops --missing ----
expect_text "nothing is missing" 0 out '^nothing is missing' "$kiln" ops --missing model.pdmodel
printf 'program\nblock 0 {\n  var x float32 [2, 3] feed\n  var y float32 [2, 3]\n  y = reluu(X=x)\n  y = reluu(X=y)\n  y = teleport(X=y)\n  y = relu(X=y)\n}\n' >odd.kl
expect_text "what is missing" 1 out '^operator +reluu +2  blocks 0  \(relu is there\)' "$kiln" ops --missing odd.kl
expect_text "all at once" 1 out '^operator +teleport +1' "$kiln" ops --missing odd.kl
expect_text "as JSON" 1 out '"count": 2' "$kiln" ops --missing odd.kl --json
valid_json "missing JSON" out
expect_text "no such file" 1 err 'E-IO-001' "$kiln" ops --missing none.kl

# ---- edit ----
expect "cut by an output" 0 "$kiln" edit model.pdmodel --outputs batch_norm_0.tmp_2 -o cut.pdmodel
expect_text "the cut runs" 0 out '^batch_norm_0.tmp_2' "$kiln" run cut.pdmodel --feed x=x.npy
[ "$(stat -c %s cut.pdiparams)" -lt "$(stat -c %s model.pdiparams)" ] && pass "with fewer parameters" || bad "with fewer parameters" "sizes"
expect "cut by an input" 0 "$kiln" edit model.pdmodel --inputs batch_norm_0.tmp_2 -o tail.pdmodel
expect_text "the head is gone" 0 out 'batch_norm_0.tmp_2 = feed' "$kiln" dump tail.pdmodel
"$kiln" dump tail.pdmodel | grep -q 'x = feed' && bad "x is not fed any more" "it is" || pass "x is not fed any more"
expect_text "an input that does not cut" 1 err 'E-VER-00' "$kiln" edit model.pdmodel --inputs relu6_0.tmp_0 --outputs conv2d_1.tmp_0 -o no.pdmodel
expect_text "no such output" 1 err 'Did you mean "batch_norm_0.tmp_' "$kiln" edit model.pdmodel --outputs batch_norm_0.tmp_x -o no.pdmodel
expect "rename" 0 "$kiln" edit model.pdmodel --rename x=image --rename conv2d_0.w_0=first/weight -o named.pdmodel
"$kiln" run named.pdmodel --feed image=x.npy >out.named 2>err
same "renamed it computes the same" out.named out.model.pdmodel
expect_text "rename to a name that is there" 1 err 'E-PRO-002' "$kiln" edit model.pdmodel --rename x=conv2d_0.w_0 -o no.pdmodel
expect_text "rename what is not there" 1 err 'E-VER-001' "$kiln" edit model.pdmodel --rename nothing=x -o no.pdmodel
expect_text "rename without =" 2 err 'E-ARG-001' "$kiln" edit model.pdmodel --rename x -o no.pdmodel
expect "fix a shape" 0 "$kiln" edit model.pdmodel --feed-shape x=2x3x9x9 -o fixed.pdmodel
expect_text "all shapes follow" 0 out 'var conv2d_1.tmp_0 float32 \[2, 4, 5, 5\]' "$kiln" dump fixed.pdmodel
expect "the fixed program runs" 0 "$kiln" run fixed.pdmodel --feed x=x.npy
same "with the same results" out out.model.pdmodel
expect_text "a shape that does not fit" 1 err 'E-SHP' "$kiln" edit model.pdmodel --feed-shape x=2x5x9x9 -o no.pdmodel
expect "drop by type" 0 "$kiln" edit model.pdmodel --drop relu6 -o dropped.pdmodel
"$kiln" dump dropped.pdmodel | grep -q 'relu6(' && bad "it is gone" "relu6 is there" || pass "it is gone"
expect "drop by output" 0 "$kiln" edit model.pdmodel --drop relu6_0.tmp_0 -o dropped2.pdmodel
same "the same program" dropped.pdmodel dropped2.pdmodel
expect_text "what changes the shape stays" 1 err 'E-OPR-004' "$kiln" edit model.pdmodel --drop concat -o no.pdmodel
expect_text "drop what is not there" 2 err 'E-ARG-001' "$kiln" edit model.pdmodel --drop warp -o no.pdmodel
expect "drop with its gradient" 0 "$kiln" edit net.pdmodel --drop relu -o norelu.pdmodel
"$kiln" dump norelu.pdmodel | grep -qE ' relu(_grad)?\(' && bad "both are gone" "relu is there" || pass "both are gone"
expect_text "edit without -o" 2 err 'missing' "$kiln" edit model.pdmodel
[ ! -e no.pdmodel ] && pass "nothing is written on failure" || bad "nothing is written on failure" "no.pdmodel is there"

# ---- diff ----
expect_text "a program with its optimised form" 0 out '^0 differences of structure, 0 of' "$kiln" diff model.pdmodel --optimised
expect_text "on given feeds" 0 out ' 0 of ' "$kiln" diff model.pdmodel --feed x=x.npy
expect_text "two forms of one program" 0 out '^0 differences' "$kiln" diff model.pdmodel text.kl
expect_text "feeds are random, with a note" 0 err 'random \(--seed 3\)' "$kiln" diff model.pdmodel text.kl --seed 3
expect_text "renamed variables" 1 out '^name +"x" and "image"' "$kiln" diff model.pdmodel named.pdmodel
expect_text "but equal values" 1 out ', 0 of ' "$kiln" diff model.pdmodel named.pdmodel
expect_text "a dropped operator" 1 out '^operator +op [0-9]+ `relu6` is only in the first' "$kiln" diff model.pdmodel dropped.pdmodel
expect_text "the first difference" 1 out '^value +"relu6_0.tmp_0" of op [0-9]+ `relu6`: max abs .*first difference' "$kiln" diff model.pdmodel dropped.pdmodel --feed x=x.npy
expect_text "diff --structure" 1 out 'differences of structure$' "$kiln" diff model.pdmodel dropped.pdmodel --structure
sed 's/hard_sigmoid(X=\([^)]*\)) {offset=[0-9.]*/hard_sigmoid(X=\1) {offset=0.25/' text.kl >other.kl
cp text.pdiparams other.pdiparams
expect_text "an attribute" 1 out '^attribute +op [0-9]+ `hard_sigmoid`, offset: 0.5 and 0.25' "$kiln" diff text.kl other.kl
expect_text "its operator is named" 1 out 'of op [0-9]+ `hard_sigmoid`.*first difference' "$kiln" diff text.kl other.kl --feed x=x.npy
perl -e 'binmode STDIN; binmode STDOUT; undef $/; $_ = <STDIN>; substr($_, -2, 1) = chr(0x41); print' <text.pdiparams >changed.pdiparams
cp text.kl changed.kl
expect_text "a parameter's value" 1 out '^parameter +.*values differ' "$kiln" diff text.kl changed.kl
expect_text "diff --json" 1 out '"equal": false, "first": "' "$kiln" diff text.kl other.kl --json
valid_json "diff JSON" out
expect_text "diff with an unknown operator" 1 err 'E-OPR-001' "$kiln" diff odd.kl
expect "its structure can be compared" 0 "$kiln" diff odd.kl odd.kl --structure
expect_text "--optimised takes one program" 2 err 'takes one' "$kiln" diff text.kl other.kl --optimised

# ---- programs of older versions ----
# 1.x: operators that are gone, attributes of other types, [.., 1] indices; version_2.kl says the same in the terms of 2.6.
shapes=(--feed-shape x=3x3x8x8 --feed-shape ids=3x1)
expect_text "1.x has all its operators" 0 out '^nothing is missing' "$kiln" ops --missing "$tests/data/version_1.kl"
expect_text "1.x in its optimised form" 0 out ', 0 of 2[0-9] ' "$kiln" diff "$tests/data/version_1.kl" "${shapes[@]}"
expect_text "1.x computes what 2.6 does" 1 out ', 0 of 2[0-9] results part' "$kiln" diff "$tests/data/version_1.kl" "$tests/data/version_2.kl" "${shapes[@]}"
expect "1.x through kiln edit" 0 "$kiln" edit "$tests/data/version_1.kl" "${shapes[@]}" -o old.pdmodel
expect_text "scalars of 2.4 are [1]" 0 out '^  1 8$' bash -c "
  perl -e 'my \$h = \"{\x27descr\x27: \x27<f4\x27, \x27fortran_order\x27: False, \x27shape\x27: (2, 4), }\"; \$h .= \" \" while (11 + length \$h) % 64;
    print \"\x93NUMPY\1\0\", pack(\"v\", 1 + length \$h), \"\$h\n\", pack(\"f<*\", (1) x 8)' >ones.npy
  exec '$kiln' run '$tests/data/version_2_4.kl' --feed x=ones.npy --fetch c"

[ $fails -eq 0 ]
