# The specification's commands and ours. Everything real is in `cargo xtask`.
IMAGE ?= shadow:dev

.PHONY: build run test demo demo-down docker-build fmt

build: ## build the `shadow` binary as bin/manager
	cargo build --release --package shadow
	install -D target/release/shadow bin/manager

run: ## run the operator against the current kubeconfig
	cargo run --package shadow -- run operator

test: ## install what is needed and run everything, end-to-end tests included (root)
	cargo xtask ci

demo: ## bring up a real two-node cluster and migrate a live consumer (root)
	cargo xtask demo

demo-down: ## remove all that `make demo` made
	cargo xtask demo --down

docker-build: ## build the image with Docker
	docker build --tag $(IMAGE) .

fmt:
	cargo fmt --all
