# expect.sh: what the scripts that test the command line from outside share; they source it with BUILD as its argument. It goes
# to a folder of its own, $tmp, which is removed at the end. A line "ok NAME" or "FAILED NAME" per check; `fails` counts.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=$(realpath "${1:-build}")
tests=$PWD/tests
kiln=$build/kiln
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
export KILN_DEBUG='' NO_COLOR=1 KILN_CACHE_DIR=$tmp/cache
fails=0
cd "$tmp" || exit 1

pass() { echo "ok $1"; }
bad() { # NAME WHY
  echo "FAILED $1"
  echo "  $2"
  [ -s out ] && head -n 12 out | sed 's/^/  stdout: /'
  [ -s err ] && head -n 12 err | sed 's/^/  stderr: /'
  fails=$((fails + 1))
}
# expect NAME RC COMMAND...: the exit code; output is left in out and err.
expect() {
  local name=$1 rc=$2 got
  shift 2
  "$@" >out 2>err </dev/null
  got=$?
  if [ $got -ne "$rc" ]; then bad "$name" "exit code $got instead of $rc: $*"; return 1; fi
  pass "$name"
}
# expect_text NAME RC FILE PATTERN COMMAND...: also a line of out or err that matches.
expect_text() {
  local name=$1 rc=$2 file=$3 pattern=$4 got
  shift 4
  "$@" >out 2>err </dev/null
  got=$?
  if [ $got -ne "$rc" ]; then bad "$name" "exit code $got instead of $rc: $*"; return 1; fi
  if ! grep -qE -- "$pattern" "$file"; then bad "$name" "no /$pattern/ in $file of: $*"; return 1; fi
  pass "$name"
}
same() { # NAME FILE FILE
  if cmp -s "$2" "$3"; then pass "$1"; else bad "$1" "$2 and $3 differ"; fi
}
valid_json() { # NAME FILE
  if ! command -v python3 >/dev/null; then pass "$1 (not checked: no python3)"; return; fi
  if python3 -m json.tool "$2" >/dev/null 2>json.err; then pass "$1"; else bad "$1" "no JSON in $2: $(head -c 300 json.err)"; fi
}
