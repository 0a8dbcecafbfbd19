#!/usr/bin/env bash
# All tests, with the time of each step, and what failed once more at the end: what they need is brought first. Cold this
# takes long, for Kubernetes is built from its sources; afterwards everything is in the cache.
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

# Always the whole workspace: another choice of packages would have other features, and most of it be built again.
tests() { cargo test --quiet --workspace --no-fail-fast "$@"; }

# The libraries, the programs, and the tests of every package but this one.
quick_tests() {
    local file name chosen=()
    for file in {crds,inference-pod,operator}/tests/{*.rs,*/main.rs}; do
        if test -e "$file"; then
            name=${file#*/tests/}
            name=${name%/main.rs}
            chosen+=(--test "${name%.rs}")
        fi
    done
    tests --lib --bins "${chosen[@]}"
}

tools=${CARGO_TARGET_DIR:-target}/debug

# What only a second build of the same programs would want goes where it was put aside for that.
bring_programs() {
    "$tools/cluster" programs >/dev/null
    case ${GOCACHE:-} in "$ORTOLAN_CACHE"/*) test ! -d "$GOCACHE" || { chmod -R u+w "$GOCACHE" && rm -r "$GOCACHE"; } ;; esac
}

# Images need root, as the tests that want them do. The server's has the program that is tested anyway, for an optimised one nearly
# doubles what is compiled in Rust; the operator is tested as a process. Both images as they are published: make demo.
bring_images() { test "$(id -u)" != 0 || "$tools/images" build --compiled pod >/dev/null; }

# Jobs in the background do not hear Ctrl-C. Started with job control each has a process group, by which it ends with all that it
# started.
end() {
    local job
    for job in "$@"; do
        kill -- "-$job" 2>/dev/null || true
    done
    wait || true
}

# Compiling Go, compiling Rust and downloading what goes into images leave each other's gaps to be filled, so they run side
# by side.
build_beside() {
    set -m
    bring_programs &
    local programs=$!
    bring_images &
    local images=$!
    set +m
    trap "end $programs $images && exit 130" INT TERM
    if ! tests --no-run; then
        end "$programs" "$images"
        return 1
    fi
    wait "$programs" && wait "$images"
    trap 'exit 130' INT TERM
}

# Compares the machine before and after a cluster, so it has a network and mounts of its own: others start clusters beside it.
# Without root there is nothing to compare, for no cluster with a node runs; nor with CONTEXT, whose cluster is reached by this
# network.
local_cluster() {
    if test "$(id -u)" = 0 && test -z "${CONTEXT+set}"; then
        unshare --net --mount sh -c 'ip link set lo up && exec "$@"' sh \
            cargo test --quiet --workspace --offline --test cluster
    else
        tests --test cluster
    fi
}

cluster_tests() {
    local failed=0
    # First the one without a cluster: while several start, whoever else runs hardly gets to run.
    step "rules and dashboards" tests --test monitoring || failed=1
    step "definition and charts" tests --test crd --test chart || failed=1
    step "local cluster" local_cluster || failed=1
    return "$failed"
}

# Tests of clusters wait more than they work, so three run side by side; what each said is shown when it has ended.
suites() {
    local failed=0
    # What is written in Go and started for a moment collects its garbage less often.
    export GOGC=400
    set -m
    tests --test operator >"$logs/operator" 2>&1 &
    local operator=$!
    cluster_tests >"$logs/clusters" 2>&1 &
    local clusters=$!
    set +m
    trap "end $operator $clusters && exit 130" INT TERM
    step "unit, contract and router tests" quick_tests || failed=1
    step "arithmetic of the benchmarks" env PYTHONPATH=tests python3 -m unittest discover -q -s tests/bench -t tests || failed=1
    step "clusters, the rest" wait "$clusters" || failed=1
    cat "$logs/clusters"
    step "operator, the rest" wait "$operator" || failed=1
    cat "$logs/operator"
    return "$failed"
}

# Of each test that failed its name and the first lines of why, where the end of a long log is all that is kept.
what_failed() {
    echo "▸ what failed"
    awk '/^---- |^error: test failed|^test .* FAILED/ { left = /^----/ ? 12 : 1 } left-- > 0 { print substr($0, 1, 400) }' \
        "$logs/all"
}

# Compilers that find the disk full say so in many ways, and far above the end of the log.
room() { df -Pk . | awk 'NR == 2 { printf "%.0f GB are free here; the first time takes about 16\n", $4 / 1e6 }'; }

# Tests that were ended have left their clusters.
remove_clusters() {
    local name
    for name in $("$tools/cluster" list | cut -f 1 | grep '^test-'); do
        "$tools/cluster" down --name "$name"
    done
}

ended() {
    case $1 in
        0) ;;
        130) remove_clusters || true ;;
        *) room ;;
    esac
    rm -r "$logs"
}

logs=$(mktemp -d)
trap 'ended $?' EXIT
trap 'exit 130' INT TERM
room
step "library and models" make --no-print-directory models
# With a test beside them: see the Makefile.
step "tools and server" cargo build --quiet --workspace --test rollout --bin cluster --bin images --bin inference-pod
step "build" build_beside
suites 2>&1 | tee "$logs/all" || { what_failed && exit 1; }
echo "all tests passed in $SECONDS s"
