#!/bin/sh
# What cargo needs beside Rust to build the server: a C compiler, which links too, CMake, make, and on x86_64 NASM, for
# libjpeg-turbo.
# As root on Debian it installs what is missing, else it says how.
set -eu
missing=
for tool in cmake make nasm; do
    [ "$tool $(uname -m)" = "nasm aarch64" ] || command -v "$tool" >/dev/null || missing="$missing $tool"
done
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "this machine lacks:$missing; install with: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "installing the Debian packages:$missing"
# The list of packages may be old, or absent as in a fresh container.
install() { DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "$@"; }
# shellcheck disable=SC2086
install $missing >/dev/null 2>&1 || { apt-get update --quiet=2 && install $missing >/dev/null; }
