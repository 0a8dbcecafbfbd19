#!/bin/sh
# Cargo, for the server as it is published: the compiler knows what its code was recorded to do under load.
#
#   deploy/profile/cargo.sh build --profile dist --locked --package inference-pod
#
# The record is made by `make profile`. It is a few versions old at times, which costs speed and nothing else: a function that has changed
# since, and one of a crate whose version has, is compiled as if nothing were known of it. ORTOLAN_RECORD names another one.
set -eu
record=${ORTOLAN_RECORD:-$(cd "$(dirname "$0")" && pwd)/inference-pod.profdata}
digest=$(sha256sum "$record" | cut -c 1-12)
# Cargo knows by the flags alone that a library is to be compiled anew. Encoded, for a path may have spaces.
flags=$(printf '%s\n' ${RUSTFLAGS:-} "-Cprofile-use=$record" -Cllvm-args=-no-pgo-warn-mismatch --cfg "record_$digest")
CARGO_ENCODED_RUSTFLAGS=$(printf '%s' "$flags" | tr '\n' '\037')
export CARGO_ENCODED_RUSTFLAGS
exec cargo "$@"
