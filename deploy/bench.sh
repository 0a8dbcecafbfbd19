#!/usr/bin/env bash
# Time of each batch size of the models that we make: a bare session, no server. What a server costs beside it is not
# measured yet.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${ORTOLAN_CACHE:-$PWD/.cache}
export ORT_DYLIB_PATH=$cache/onnxruntime/lib/libonnxruntime.so
cargo build --quiet --release --package inference-pod
for model in tiny minilm efficientnet-lite0 resnet50-random; do
    echo "▸ $model"
    "${CARGO_TARGET_DIR:-target}/release/inference-pod" check "$cache/models/$model" | grep -E '^(bucket|batching)'
done
