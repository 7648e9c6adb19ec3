#!/bin/bash
# docs.sh BUILD: are the pages true? Generated pages are those of the tables; C programs in the pages compile and run, C
# fragments compile; verbs and flags are described; links lead somewhere.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export KILN_CACHE_DIR=$dir/cache
failures=0
lib=$(cd "$build" && pwd) || exit 1
kiln=$lib/kiln
cflags="-std=c17 -Wall -Wextra -Wpedantic -Werror -O1 -Ifrontend"
case "$build" in *san) cflags="$cflags -fsanitize=address,undefined" ;; esac

# check NAME COMMAND...
check() {
  local name=$1
  shift
  if "$@" >"$dir/out" 2>&1; then
    echo "ok $name"
  else
    echo "FAILED $name"
    sed 's/^/    /' "$dir/out" | head -40
    failures=$((failures + 1))
  fi
}

# The body of every code block of PAGE whose opening line is exactly ```KIND, into FILE-1.c, FILE-2.c, ...
blocks() {
  awk -v kind="\`\`\`$2" -v to="$3" '
    on && /^```$/ { on = 0; next }
    on { print > file }
    $0 == kind { on = 1; file = to "-" ++n ".c" }' "$1"
}

compile() { ${CC:-gcc} $cflags -o "$2" "$1" -L"$lib" -lkiln "-Wl,-rpath,$lib"; }
compile_and_run() { compile "$1" "$1.bin" && (cd "$dir" && "$1.bin"); }

# A fragment becomes the body of a function that has what the page speaks of.
fragment() {
  {
    cat <<'C'
#include <kiln.h>
#include <stdio.h>
#include <string.h>
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
bool my_infer(const kl_custom_op *, int, const kl_tensor *, int, kl_tensor *);
bool my_forward(const kl_custom_op *, int, const kl_tensor *, int, kl_tensor *);
void fragment(kl_net *net, kl_exec *exe, kl_var *x, kl_var *image, kl_var *rate);
void fragment(kl_net *net, kl_exec *exe, kl_var *x, kl_var *image, kl_var *rate) {
  (void)net, (void)exe, (void)x, (void)image, (void)rate;
C
    cat "$1"
    echo '}'
  } >"$1.frag.c"
  ${CC:-gcc} $cflags -c -o "$1.o" "$1.frag.c"
}

# Code for Kiln itself: compiled as a file of that folder.
inside() { # FILE INCLUDE_DIR PRELUDE
  printf '%s\n' "$3" | cat - "$1" >"$1.in.c"
  ${CC:-gcc} $cflags -D_GNU_SOURCE "-I$2" -c -o "$1.o" "$1.in.c"
}

for page in README.md docs/*.md; do
  base=$dir/$(basename "$page" .md)
  blocks "$page" 'c program' "$base-program"
  blocks "$page" c "$base-fragment"
  blocks "$page" 'c ir' "$base-ir"
  blocks "$page" 'c pass' "$base-pass"
done
for f in "$dir"/*-program-*.c; do check "program $(basename "$f" .c)" compile_and_run "$f"; done
for f in "$dir"/*-fragment-*.c; do check "fragment $(basename "$f" .c)" fragment "$f"; done
for f in "$dir"/*-ir-*.c; do
  check "code $(basename "$f" .c)" inside "$f" ir/ops $'#include "ops.h"\nExpandFn x_shuffle_channel;'
done
for f in "$dir"/*-pass-*.c; do
  check "code $(basename "$f" .c)" inside "$f" passes $'#include "rewrite.h"\nGraphPass pass_strength;'
done
check "the program in kiln.h" bash -c "
  awk '/^ \* *#include <kiln.h>/ { p = 1 } /^ \* A net holds/ { exit } p' frontend/kiln.h | sed 's/^ \* \{0,3\}//' >$dir/head.c"
check "the program in kiln.h runs" compile_and_run "$dir/head.c"

check "docs/operators.md is that of the table (make docs)" bash -c "$kiln ops --markdown | diff docs/operators.md -"
check "docs/errors.md is that of the table (make docs)" bash -c "$kiln explain --markdown | diff docs/errors.md -"
check "docs/kiln.1 has the verbs and flags of the tables (make docs)" bash -c \
  "$kiln help --manual | diff <(sed -n '/^\.SH VERBS/,/^\.SH EXIT STATUS/p' docs/kiln.1 | sed '\$d') -"
command -v man >/dev/null && check "docs/kiln.1 is formatted without a warning" bash -c \
  "out=\$(MANWIDTH=100 man --warnings -l docs/kiln.1 2>&1 >/dev/null); [ -z \"\$out\" ] || { echo \"\$out\"; exit 1; }"

described() { # every verb with a section, every flag named on the page
  local verb flag bad=0
  for verb in $(sed -n 's/^VERB(\([a-z]*\),.*/\1/p' tools/verbs.def); do
    grep -q "^## kiln $verb" docs/cli.md || { echo "docs/cli.md has no section on kiln $verb"; bad=1; }
    for flag in $("$kiln" "$verb" --help | sed -n 's/^  \(--\{0,1\}[a-z-]*\).*/\1/p'); do
      sed -n "/^## kiln $verb/,/^## /p" docs/cli.md | grep -qF -- "$flag" ||
        { echo "docs/cli.md: kiln $verb does not speak of $flag"; bad=1; }
    done
  done
  return $bad
}
check "verbs and flags are described" described

links() { # relative links, from the page's folder
  local page link bad=0
  for page in README.md docs/*.md; do
    for link in $(grep -o '](\([^)#]*\)[^)]*)' "$page" | sed 's/^](//; s/[)#].*//'); do
      case "$link" in '' | http*) continue ;; esac
      [ -e "$(dirname "$page")/$link" ] || { echo "$page: no $link"; bad=1; }
    done
  done
  return $bad
}
check "links lead somewhere" links
check "passes are described" bash -c "
  for p in \$(sed -n 's/^PASS(\([a-z0-9_]*\),.*/\1/p' passes/passes.def); do
    grep -q \"\\\`\$p\\\`\" docs/architecture.md || { echo \"docs/architecture.md: no \$p\"; exit 1; }; done"
exit $((failures > 0))
