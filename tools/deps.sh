#!/bin/sh
# deps.sh build|test: the Debian packages that Kiln needs; the one place where they are listed.
# Missing ones are installed if we are root, otherwise they are named and the exit code is 1.
set -u
build="gcc make libc6-dev llvm-19-dev libprotobuf-c-dev protobuf-c-compiler libopenblas-dev zlib1g-dev
       dataset-fashion-mnist"
test="$build libcmocka-dev clang clang-format pkg-config locales"

case "${1-}" in
build) want=$build ;;
test) want=$test ;;
*) echo "usage: deps.sh build|test" >&2; exit 2 ;;
esac
command -v dpkg-query >/dev/null || {
  echo "deps.sh: this is not Debian; needed are the equivalents of:" $want >&2
  exit 0
}

missing=
for p in $want; do
  case "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" in
  installed*) ;;
  *) missing="$missing $p" ;;
  esac
done
[ -z "$missing" ] && exit 0

line="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" != 0 ]; then
  echo "Missing Debian packages:$missing" >&2
  echo "Install them as root: apt-get update && $line" >&2
  exit 1
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$line -qq >/dev/null 2>&1 || { apt-get update -qq && $line -qq >/dev/null; } || {
  echo "deps.sh: the packages could not be installed:$missing" >&2
  exit 1
}
