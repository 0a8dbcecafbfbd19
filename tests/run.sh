#!/usr/bin/env bash
# All tests, with the time of each step: what they need is brought first. Cold this takes long, for
# Kubernetes is built from its sources; afterwards everything is in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORTOLAN_CACHE=${ORTOLAN_CACHE:-$PWD/.cache} ORT_DISABLE_TELEMETRY=1

step() {
    local name=$1 began=$SECONDS status=0
    shift
    echo "▸ $name"
    "$@" || status=$?
    echo "  $name: $((SECONDS - began)) s"
    return "$status"
}

# Compiling Go and compiling Rust leave each other's gaps to be filled, so they run side by side.
bring_programs() { cargo run --quiet --package ortolan-tests --bin cluster -- programs >/dev/null; }
build_beside() {
    bring_programs &
    local programs=$!
    cargo test --quiet --workspace --no-run || { kill "$programs" && wait "$programs"; return 1; }
    wait "$programs"
}

# The operator's tests wait more than they work, so others run beside them, but not those that compare the machine before
# and after a cluster.
suites() {
    local log failed=0
    log=$(mktemp)
    cargo test --quiet --package ortolan-tests --test operator >"$log" 2>&1 &
    local operator=$!
    step "unit, contract and router tests" cargo test --quiet --workspace --exclude ortolan-tests || failed=1
    step "tests of the harness" cargo test --quiet --package ortolan-tests --lib --bins || failed=1
    step "definition and charts" cargo test --quiet --package ortolan-tests --test crd --test chart || failed=1
    step "local cluster" cargo test --quiet --package ortolan-tests --test cluster -- --skip remains:: || failed=1
    step "operator, the rest" wait "$operator" || failed=1
    cat "$log"
    rm "$log"
    step "what clusters leave behind" cargo test --quiet --package ortolan-tests --test cluster -- remains:: || failed=1
    return "$failed"
}

step "library and models" make --no-print-directory models
step "cluster command" cargo build --quiet --package ortolan-tests --bin cluster
step "build" build_beside
# The operator that its tests start as a process.
step "operator" cargo build --quiet --package ortolan-operator
suites
echo "all tests passed in $SECONDS s"
