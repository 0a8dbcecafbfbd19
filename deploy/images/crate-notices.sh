#!/bin/sh
# crate-notices.sh PACKAGE OUT: copies our licence and the licence files of every crate that the package's binary is
# made of, which most of their licences ask of those who pass the binary on.
set -eu
package=$1 out=$2
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
mkdir -p "$out/crates"
cp LICENSE "$out/"
# In a variable and not a pipe: a failure must end the script.
crates=$(cargo tree --offline --locked --package "$package" --edges normal --prefix none --format '{p}')
echo "$crates" | sed -n 's/^\([^ ]*\) v\([^ ]*\).*/\1-\2/p' | sort -u | while read -r crate; do
    for notice in "$sources"/*/"$crate"/LICEN[CS]E* "$sources"/*/"$crate"/COPYING* "$sources"/*/"$crate"/NOTICE*; do
        [ -f "$notice" ] || continue
        mkdir -p "$out/crates/$crate"
        cp "$notice" "$out/crates/$crate/"
    done
    # The C library that comes inside of its crate has notices of its own.
    for notice in "$sources"/*/"$crate"/libjpeg-turbo/LICENSE.md "$sources"/*/"$crate"/libjpeg-turbo/README.ijg; do
        [ -f "$notice" ] || continue
        mkdir -p "$out/crates/$crate/libjpeg-turbo"
        cp "$notice" "$out/crates/$crate/libjpeg-turbo/"
    done
done
