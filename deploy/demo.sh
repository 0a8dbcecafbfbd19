#!/usr/bin/env bash
# A local Kubernetes, our image in a pod, a photo classified through the Service. It leaves the cluster up.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORTOLAN_CACHE=${ORTOLAN_CACHE:-$PWD/.cache} ORT_DISABLE_TELEMETRY=1
name=${NAME:-demo}
cluster() { cargo run --quiet --package ortolan-tests --bin cluster -- "$@"; }

make --no-print-directory models
# What `up` prints for a shell names both.
shell=$(cluster up --name "$name")
export KUBECONFIG=${shell#*KUBECONFIG=}
KUBECONFIG=${KUBECONFIG%%$'\n'*}
kubectl=${shell##*kubectl=}
archive=$(cargo run --quiet --package ortolan-tests --bin images -- build pod | cut -f2)
cluster import --name "$name" "$archive"

began=$SECONDS
sed "s#/var/lib/ortolan/models#$ORTOLAN_CACHE/models#" deploy/manifests/espresso.yaml | "$kubectl" apply -f -
"$kubectl" wait --for=condition=Ready --timeout=60s pod/espresso
echo "ready $((SECONDS - began)) s after apply"
address=$("$kubectl" get service espresso -o jsonpath='{.spec.clusterIP}')
for photo in coffee camera cat; do
    python3 - "$address" "deploy/samples/photos/$photo.png" <<'PHOTO'
import json, sys, urllib.request
address, path = sys.argv[1:]
headers = {"content-type": "image/png"}
request = urllib.request.Request(f"http://{address}/predict/espresso", open(path, "rb").read(), headers)
top = json.load(urllib.request.urlopen(request, timeout=30))["predictions"][0]
print(f"  {path}: {top['class_id']} {top['label']} {top['confidence']:.3f}")
PHOTO
done
cat <<HINT

The cluster stays up. Try next:
  export KUBECONFIG=$KUBECONFIG
  $kubectl get pods,services
  curl http://$address/info
  curl -H 'content-type: image/png' --data-binary @deploy/samples/photos/coffee.png http://$address/predict/espresso
  make cluster-down NAME=$name
HINT
