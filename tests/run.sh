#!/usr/bin/env bash
# All tests, with the time of each step: what they need is brought first. Cold this takes long, for
# Kubernetes is built from its sources; afterwards everything is in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORTOLAN_CACHE=${ORTOLAN_CACHE:-$PWD/.cache} ORT_DISABLE_TELEMETRY=1

step() {
    local name=$1 began=$SECONDS
    shift
    echo "▸ $name"
    "$@"
    echo "  $name: $((SECONDS - began)) s"
}

# Compiling Go and compiling Rust leave each other's gaps to be filled, so they run side by side.
bring_programs() { cargo run --quiet --package ortolan-tests --bin cluster -- programs >/dev/null; }
build_beside() {
    bring_programs &
    local programs=$!
    cargo test --quiet --workspace --no-run || { kill "$programs" && wait "$programs"; return 1; }
    wait "$programs"
}

step "library and models" make --no-print-directory models
step "cluster command" cargo build --quiet --package ortolan-tests --bin cluster
step "build" build_beside
step "unit, contract and router tests" cargo test --quiet --workspace --exclude ortolan-tests
step "tests of the harness" cargo test --quiet --package ortolan-tests --lib --bins
# The operator that its tests start as a process.
step "operator" cargo build --quiet --package ortolan-operator
step "end-to-end tests of the operator" cargo test --quiet --package ortolan-tests --test operator
step "end-to-end tests on a local cluster" cargo test --quiet --package ortolan-tests --test crd --test chart --test cluster
echo "all tests passed in $SECONDS s"
