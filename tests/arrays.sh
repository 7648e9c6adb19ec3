#!/bin/bash
# arrays.sh BUILD: data files of all forms as feeds; each says the same as x.npy, or gets one coded error. x are 6 rows of 4.
. "$(dirname "$0")/expect.sh" "$@"

cat >sum.kl <<'EOF'
program version 0
block 0 parent -1 {
  var x float32 [-1, 4] feed
  var i int64 [-1, 4] feed
  var b bool [-1, 4] feed
  var y float32 [-1, 4]
  var j int64 [-1, 4]
  var c float32 [-1, 4]
  y = scale(X=x) {scale=2.0}
  j = assign(X=i)
  c = cast(X=b) {in_dtype=0, out_dtype=5}
}
EOF
perl -e '
  sub put { open my $o, ">", $_[0] or die; binmode $o; print $o $_[1]; close $o }
  sub npy { my ($type, $dims, $data, $order, $v) = @_;
    my $h = sprintf "{\x27descr\x27: \x27%s\x27, \x27fortran_order\x27: %s, \x27shape\x27: (%s), }", $type, $order // "False", $dims;
    $h .= " " while (11 + length $h) % 64;
    "\x93NUMPY" . (($v // 1) == 1 ? "\1\0" . pack("v", 1 + length $h) : chr($v) . "\0" . pack("V", 1 + length $h)) . "$h\n" . $data }
  sub zip { my ($data, $central, $n) = ("", "", 0);
    while (my ($name, $file) = splice @_, 0, 2) {
      my $fixed = pack "vvvVVVVvv", 20, 0, 0, 0, 0, length $file, length $file, length $name, 0;
      $central .= "PK\1\2" . pack("v", 20) . $fixed . pack("vvvVV", 0, 0, 0, 0, length $data) . $name;
      $data .= "PK\3\4$fixed$name$file"; $n++ }
    $data . $central . "PK\5\6" . pack "vvvvVVv", 0, 0, $n, $n, length $central, length $data, 0 }
  my @v = 0 .. 23;
  my @f = map { my $r = $_; map { $r + 4 * $_ } 0 .. 5 } 0 .. 3;
  my $x = npy("<f4", "6, 4", pack("f<*", @v));
  put("x.npy", $x);
  put("v2.npy", npy("<f4", "6, 4", pack("f<*", @v), "False", 2));
  put("big.npy", npy(">f4", "6, 4", pack("f>*", @v)));
  put("double.npy", npy("<f8", "6, 4", pack("d<*", @v)));
  put("fortran.npy", npy("<f4", "6, 4", pack("f<*", @f), "True"));
  put("u1.npy", npy("|u1", "6, 4", pack("C*", @v)));
  put("u2.npy", npy("<u2", "6, 4", pack("v*", @v)));
  put("u2big.npy", npy(">u2", "6, 4", pack("n*", @v)));
  put("u4.npy", npy("<u4", "6, 4", pack("V*", @v)));
  put("u8.npy", npy("<u8", "6, 4", pack("Q<*", @v)));
  put("huge.npy", npy("<u8", "1, 4", pack("Q<*", 1, 2, 3, ~0)));
  put("high.npy", npy("<u4", "1, 4", pack("V*", 0, 65535, 65536, 4294967295)));
  put("odd.npy", npy("<c8", "6, 4", pack("f<*", @v, @v)));
  put("rank.npy", npy("<f4", "1, 1, 1, 1, 1, 1, 1, 1, 1, 1", pack("f<", 1)));
  put("nan.npy", npy("<f4", "1, 4", pack("f<*", 1, 2, -sin(9**9**9), 4)));
  put("wide.npy", npy("<f8", "1, 4", pack("d<*", 1, 2, 1e19, 4)));
  put("edge.npy", npy("<f8", "1, 4", pack("d<*", 1, 2, -9223372036854775808, 4.5)));
  put("bool.npy", npy("|b1", "1, 4", pack("C*", 0, 1, 7, 255)));
  put("x.idx", pack("C4N2", 0, 0, 13, 2, 6, 4) . pack("f>*", @v));
  put("x.raw", pack("f<*", @v));
  put("xy.npz", zip("x.npy", $x, "y.npy", npy("<f4", "1, 4", pack("f<*", 1 .. 4))));
  put("one.npz", zip("x.npy", $x));
'
gzip -k x.npy x.idx
expect "x.npy" 0 "$kiln" run sum.kl --feed x=x.npy --fetch y
cp out want
for file in v2.npy big.npy double.npy fortran.npy u1.npy u2.npy u2big.npy u4.npy u8.npy x.idx x.npy.gz x.idx.gz one.npz xy.npz:x \
  x.raw:float32:6x4 x.raw:float32:-1x4 x.raw:float32:-1x2x2; do
  expect "$file" 0 "$kiln" run sum.kl --feed "x=$file" --fetch y
  same "$file holds the same" want out
done
expect "raw from stdin" 0 bash -c "'$kiln' run sum.kl --feed x=-:float32:-1x4 --fetch y <x.raw"
expect_text "raw, and shifted" 0 out '^  2 4 6 8$' "$kiln" run sum.kl --feed x=x.raw:float32:-1x4:shift=1 --fetch y
expect_text "large unsigned numbers" 0 out '^  0 65535 65536 4294967295$' "$kiln" run sum.kl --feed i=high.npy --fetch j
expect_text "the smallest integer, and a part" 0 out '^  1 2 -9223372036854775808 4$' "$kiln" run sum.kl --feed i=edge.npy --fetch j
expect_text "a bool is 0 or 1" 0 out '^  0 1 1 1$' "$kiln" run sum.kl --feed b=bool.npy --fetch c

wrong() { # NAME CODE PATTERN FEED
  expect_text "$1" 1 err "^error\[$2\]: .*$3" "$kiln" run sum.kl --feed "$4" --fetch "$5"
  [ "$(grep -c '^error' err)" = 1 ] || bad "$1" "not one error"
}
wrong "larger than int64" E-DAT-003 'uint64' i=huge.npy j
wrong "NaN is no integer" E-DAT-001 'element 2 of "nan.npy", -?nan, has no place in "i", which is int64' i=nan.npy j
wrong "too large for an integer" E-DAT-001 'element 2 of "wide.npy", 1e\+19' i=wide.npy j
wrong "no element type" E-DAT-003 'no element type' x=odd.npy y
wrong "too many dimensions" E-DAT-003 'no shape' x=rank.npy y
wrong "raw of another size" E-DAT-003 'float32 \[5, 4\] needs 80 bytes; 96 are there' x=x.raw:float32:5x4 y
wrong "raw of no whole rows" E-DAT-003 'needs 84 bytes; 96 are there' x=x.raw:float32:-1x7 y
wrong "raw of an overflowing size" E-MEM-002 'too large' x=x.raw:float32:99999999999x99999999999 y
wrong "raw of no type" E-IO-001 'x\.raw:float33:6x4' x=x.raw:float33:6x4 y
wrong "raw of no file" E-IO-001 '"gone"' x=gone:float32:6x4 y
wrong "no such member" E-DAT-003 'no array "z"' x=xy.npz:z y
wrong "a member must be named" E-DAT-003 'several arrays' x=xy.npz y
sed 's/\[-1, 4\]/[-1, 2, -1]/' sum.kl >open.kl
expect_text "an open dimension, and a file of fewer" 1 err 'a multiple of 2 elements a row, the file has 4' "$kiln" run open.kl --feed x=x.npy --fetch y

[ $fails -eq 0 ]
