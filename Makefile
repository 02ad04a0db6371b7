# Everything a user or a reviewer types. Each target sets up what it needs first.
.PHONY: help demo test lab bench load fuzz check package wasm setup-build setup-check setup-test
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
WASM := node js/scripts/toolchain.mjs
JS   := js/dist/.built

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-build $(JS) ## start a relay, a native peer and the demo page on this machine
	cargo build --locked
	cargo run --quiet --locked -- demo --www www --npm js

wasm: setup-build $(JS) ## build the npm package into js/

test: setup-test $(JS) tests/browser/node_modules/.package-lock.json tests/interop/node_modules/.package-lock.json ## run every test
	cargo test --locked
	node --test js/test/*.test.mjs
	node --test --test-concurrency=1 tests/browser/*.test.mjs
	node --test --test-concurrency=1 tests/interop/*.test.mjs
	cargo test --locked -p throughline-lab

lab: setup-test $(JS) tests/browser/node_modules/.package-lock.json ## print the connectivity matrix behind real NATs (needs root; LAB="--full --repeat 3" for more)
	cargo build --locked
	cargo run --quiet --locked -p throughline-lab -- matrix --json target/matrix.json --markdown target/matrix.md $(LAB)

bench: setup-test $(JS) tests/browser/node_modules/.package-lock.json tests/interop/node_modules/.package-lock.json ## measure ours beside iroh, rust-libp2p, js-libp2p and bare WebRTC (needs root; BENCH="--repeat 30" for more), then the decoders
	cargo build --release --locked
	cargo build --release --locked --manifest-path benches/peers/Cargo.toml
	cargo run --quiet --locked -p throughline-lab -- compare --json target/compare.json --markdown target/compare.md $(BENCH)
	THROUGHLINE=$${CARGO_TARGET_DIR:-target}/release/throughline node benches/browser/main.mjs --markdown target/browser.md
	cargo bench --locked --features fuzzing --bench decoders -- --warm-up-time 0.3 --measurement-time 1

load: setup-test ## measure load and faults against what was promised, a quarter of an hour (LOAD=--hour for more); also in docs/load.md. LOAD=--hostile: attacks for a day (HOURS=1 for less)
ifeq ($(LOAD),--hostile)
	scripts/hostile $(or $(HOURS),24)
else
	cargo test --release --locked --test load -- --long --markdown docs/load.md $(LOAD)
endif

fuzz: setup-build ## let libFuzzer search every decoder for a minute each (SECONDS=600 for more)
	scripts/fuzz $(or $(SECONDS),60)

# The features one by one: what is compiled for all of them together may miss something alone.
FEATURES := server cli fuzzing

check: setup-check js/node_modules/.package-lock.json ## format, lints on both targets and for each feature, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-features --all-targets -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	for feature in $(FEATURES); do cargo clippy --locked --no-default-features --features $$feature -- -D warnings || exit 1; done
	$(WASM) cargo clippy --locked --target wasm32-unknown-unknown --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --all-features --no-deps
	$(WASM) cargo-deny --offline --locked check --allow duplicate bans licenses sources
	@scripts/msrv

package: setup-build $(JS) ## make the crate and the npm package as they would be published
	cargo package --locked --allow-dirty --no-verify
	folder=$$(mktemp -d) && tar -xf $(TARGET)/package/throughline-*.crate -C $$folder --strip-components 1 && \
		CARGO_TARGET_DIR=$(TARGET) cargo clippy --locked --manifest-path $$folder/Cargo.toml -- -D warnings; \
		status=$$?; rm -rf $$folder; exit $$status
	cd js && npm pack --dry-run

setup-build setup-check setup-test: setup-%:
	@scripts/setup $*

$(JS): $(shell find src js/src js/crate -name '*.rs' -o -name '*.ts') Cargo.toml Cargo.lock wasm-pack.toml js/crate/Cargo.toml js/tsconfig.json js/scripts/build.mjs js/scripts/rustc js/node_modules/.package-lock.json
	node js/scripts/build.mjs
	@touch $@

%/node_modules/.package-lock.json: %/package-lock.json
	cd $* && npm ci --no-audit --no-fund
	@touch $@
