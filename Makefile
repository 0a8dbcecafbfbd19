# Everything that is done with this repository. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: build-tools help serve demo test accept bench bench-peers profile simulate gpu-check fuzz fmt lint images models cluster-up cluster-down clean

# ONNX Runtime's own builds send usage events unless told not to; ours never do, and neither do the scripts.
export ORT_DISABLE_TELEMETRY := 1
export ORTOLAN_CACHE ?= $(CURDIR)/.cache

LIBRARY := $(ORTOLAN_CACHE)/onnxruntime/lib/libonnxruntime.so
# With a test beside it, for then libraries have the features that tests want, as they will have for all other tests: without it most
# would be built twice. So they would be without the whole workspace.
program = cargo build --quiet --workspace --test rollout --bin $(1) && $${CARGO_TARGET_DIR:-target}/debug/$(1)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# What libjpeg-turbo is built with; nothing to do where it is there.
build-tools:
	@deploy/build-tools.sh

serve: build-tools models ## Bring library and model, build the server, serve, classify photos, say what to try next
	@python3 deploy/serve.py $(ARGS)

demo: models ## A local Kubernetes, Ortolan by Helm, a model applied, photos classified from inside; NAME=…
	@$(call program,demo) $(if $(NAME),--name $(NAME))

test: build-tools ## Unit, contract, router and end-to-end tests on local clusters
	@tests/run.sh

accept: build-tools ## Long suites: all tests three times over, then a real Prometheus with each alert by its cause, and real autoscalers; ARGS=… for the latter alone
ifndef ARGS
	@for round in 1 2 3; do echo "round $$round of 3"; ORTOLAN_PUBLISHED_IMAGES=1 ORTOLAN_POD_ENDS=20 ORTOLAN_SCALE_TRIES=20 tests/run.sh; done
endif
	@python3 deploy/models/make.py tiny slow not-a-model obedient worn-out efficientnet-lite0 >/dev/null
	@ORTOLAN_PUBLISHED_IMAGES=1 cargo test --quiet --workspace --test accept -- $(ARGS)
	@ORTOLAN_PUBLISHED_IMAGES=1 cargo test --quiet --workspace --test autoscaling -- $(ARGS)

bench: build-tools models ## The server beside a bare session loop, cores pinned: ratios, latency, overload; ARGS="--quick" for a look
	@PYTHONPATH=tests python3 -m bench $(ARGS)

bench-peers: build-tools models ## Ours beside Mosec, LitServe, BentoML, MLServer, Triton and FastAPI, in one run; ARGS=…
	@test -n "$${INFERENCE_POD:-}" || deploy/profile/cargo.sh build --quiet --profile dist --locked --package inference-pod
	@python3 -m tests.bench.compare $(ARGS)

profile: build-tools models ## Record anew what the server's code does under load, for who compiles what is published (20 min)
	@PYTHONPATH=tests python3 -m bench.record

simulate: ## Autoscalers beside each other on simulated load: a table, and plots in docs/benchmarks/scaling
	@cargo run --quiet --release --package ortolan-tests --bin scaling-simulation -- docs/benchmarks/scaling
	@PYTHONPATH=tests python3 -m bench.scaling docs/benchmarks/scaling

gpu-check: build-tools models ## The server on an NVIDIA GPU beside a bare session loop; ARGS="--help" says what it needs, and how to carry it
	@python3 deploy/onnxruntime/get.py --gpu --out $(ORTOLAN_CACHE)/onnxruntime/gpu >/dev/null
	@test -n "$${INFERENCE_POD:-}" || deploy/profile/cargo.sh build --quiet --profile dist --locked --package inference-pod
	@PYTHONPATH=tests python3 -m bench.gpu $(ARGS)

fuzz: build-tools models ## Broken bodies and broken images against a running server
	@python3 tests/fuzz.py $(ARGS)

fmt: ## Format the code
	cargo fmt

lint: build-tools ## What CI checks besides the tests
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test accept --test autoscaling -- -D warnings # long suites, which are none of all targets
	test -x $(ORTOLAN_CACHE)/bin/cargo-deny || cargo install --quiet --locked cargo-deny --version 0.20.2 --root $(ORTOLAN_CACHE)
	$(ORTOLAN_CACHE)/bin/cargo-deny check bans licenses sources

images: ## Build the images of the operator and of the server (cpu), and print their sizes
	@$(call program,images) build pod operator

models: ## Make the models and bring ONNX Runtime, pinned by sha256
	@python3 deploy/onnxruntime/get.py >/dev/null
	@python3 deploy/models/make.py

cluster-up: ## Start a local Kubernetes with a node, and end one of the same name first; NAME=…, PROFILE=…
	@$(call program,cluster) up $(if $(NAME),--name $(NAME)) $(if $(PROFILE),--profile $(PROFILE))

cluster-down: ## End it and leave nothing behind
	@$(call program,cluster) down $(if $(NAME),--name $(NAME))

clean: ## Remove what was built; the cache stays
	cargo clean
