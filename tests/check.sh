#!/bin/bash
# check.sh: the house rules that a machine can see. Prints what breaks one; exit 1 if anything does.
#   includes      ir < passes, backends < executor < frontend < tools, and nothing upwards
#   operators     no operator is known by name outside its row and functions, what emits it, and the tests
#   numbers       read and written with a point in every locale
#   files         at most 1000 lines; the longest files and functions are listed
#   formatting    clang-format
#   warnings      gcc (objects) and clang (syntax only), both with -Werror
cd "$(dirname "$0")/.." || exit 1
fails=0
bad() { echo "check: $*"; fails=$((fails + 1)); }
sources() { find "$@" \( -name '*.c' -o -name '*.h' -o -name '*.def' \) -not -path '*/build/*' | sort; }

# ---- includes ----
# allowed FOLDER PATTERN...: what files of the folder may include besides their own folder and the system.
allowed() {
  local folder=$1 line file path target
  shift
  while IFS= read -r line; do
    file=${line%%:*}
    path=$(sed -E 's/.*"([^"]+)".*/\1/' <<<"$line")
    case "$path" in *.pb-c.h) [ "$folder" = ir ] && continue ;; esac
    target=$(realpath -m --relative-to=. "$(dirname "$file")/$path")
    case "$target" in "$folder"/*) continue ;; esac
    for ok in "$@"; do
      # shellcheck disable=SC2053
      [[ $target == $ok ]] && continue 2
    done
    bad "$file includes $path: $folder may include only ${*:-nothing of ours}"
  done < <(grep -nHE '^ *# *include *"' $(sources "$folder") | sed -E 's/^([^:]+):[0-9]+:/\1:/')
}
allowed ir
allowed passes 'ir/*.h' 'ir/*.def'
allowed backends 'ir/*.h' 'ir/*.def'
allowed executor 'ir/*.h' 'ir/*.def' 'passes/*.h' 'passes/*.def' backends/backend.h
allowed frontend 'ir/*.h' 'ir/*.def' executor/executor.h passes/passes.h
headers=$(find . -name kiln.h -not -path './build/*')
[ "$headers" = ./frontend/kiln.h ] || bad "the public header is there more than once: $headers"

# ---- operators by name ----
# Primitives and the functions of formulas have names of their own, which some operators share.
shared=$( { grep -ohE '^PRIM\([A-Z]+, *"[a-z]+"' ir/prims.def; grep -ohE '^ *\{"[a-z_0-9]+"|, +\{"[a-z_0-9]+"' ir/formula.c ir/builtin.c; } |
  sed -E 's/.*"([a-z_0-9]+)"$/\1/' | sort -u)
# feed and fetch operators are the ends of every program; the others are words of file formats and flags, or C functions.
names=$(grep -hoE '^OP\([a-z0-9_]+' ir/ops.def ir/ops/*.def | cut -c4- | grep -vxE 'feed|fetch|reverse|dot|shape|scale|assign|sum|pad|memcpy|trunc|seed|i1|lod_rank_table' | grep -vxF "$shared")
pattern="\"($(paste -sd'|' <<<"$names"))(_grad)?\""
while IFS= read -r line; do
  bad "an operator known by name: $line"
done < <(for f in $(sources ir passes executor backends tools |
  grep -vE '^(ir/ops\.def|ir/prims\.def|ir/ops/|passes/(backward|backward_emit|optim)\.c)'); do
  sed -E 's,/\*.*\*/,,g' "$f" | grep -nE "$pattern" | sed "s,^,$f:,"
done)

# ---- numbers ----
while IFS= read -r line; do
  bad "a number read as the program's locale writes it (use text_double): $line"
done < <(grep -nE '\b(strto(d|f|ld)|atof)\(' $(sources ir passes backends executor frontend tools))

# ---- sizes ----
while read -r n file; do
  [ "$n" -le 1000 ] || bad "$file has $n lines, more than 1000"
done < <(wc -l $(sources ir passes executor backends frontend tools tests | grep -v '\.def$') | grep -v ' total$')
echo "longest files:"
wc -l $(sources ir passes executor backends frontend tools tests) | grep -v ' total$' | sort -rn | head -n 5 | sed 's/^/  /'
echo "longest functions:"
awk 'FNR == 1 { open = 0 }
     /^[a-zA-Z_].*\) \{$/ || (/^ +.*\) \{$/ && prev ~ /^[a-zA-Z_].*[,(]$/) { name = $0; open = FNR }
     /^\}/ && open { printf "%6d %s:%d %s\n", FNR - open + 1, FILENAME, open, substr(name, 1, 60); open = 0 }
     { prev = $0 }' $(sources ir passes executor backends frontend tools | grep '\.c$') | sort -rn | head -n 5 | sed 's/^/  /'

# ---- formatting ----
for f in $(sources ir passes executor backends frontend tools tests | grep -v '\.def$'); do
  clang-format --dry-run -Werror "$f" 2>/dev/null || bad "$f is not formatted: clang-format -i $f"
done

# ---- warnings ----
MAKEFLAGS= make -s -j"$(nproc)" all >/tmp/check.$$ 2>&1 || { bad "gcc:"; tail -n 30 /tmp/check.$$; }
flags="-std=c17 -fsyntax-only -Wall -Wextra -Wpedantic -Werror -D_GNU_SOURCE -DKILN_VERSION=\"0\" -Ibuild/gen
       -I${LLVM:-/usr/lib/llvm-19}/include -Ifrontend"
# shellcheck disable=SC2086
sources ir passes executor backends frontend tools tests | grep '\.c$' |
  xargs -n 8 -P "$(nproc)" clang $flags >/tmp/check.$$ 2>&1 || { bad "clang:"; grep -E 'error|warning' /tmp/check.$$ | head -n 30; }
rm -f /tmp/check.$$

[ $fails -eq 0 ] && echo "check: the house rules hold"
[ $fails -eq 0 ]
