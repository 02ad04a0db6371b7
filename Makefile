# The commands for users and reviewers. Each target first sets up what it needs.
.PHONY: help page demo test lab bench load fuzz mutants check docs options package packages release systems wasm setup-build setup-check setup-mutants setup-release setup-systems setup-test
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/throughline
WASM := node js/scripts/toolchain.mjs
# This is the last file that the build writes.
JS   := js/dist/inline.js
PAGE := page/index.html.gz
# A page in Rust, which is a workspace of its own.
YEW  := --manifest-path examples/yew/Cargo.toml
# Every command has the same options, so that no command compiles again what another has compiled.
ALL  := --locked --all-features

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Says what a long step does, and how long it usually takes on two cores.
STEP = @echo "make: $(1) (usually $(2) the first time, and seconds later)" >&2

demo: setup-build $(JS) ## start a relay, a native peer and the demo page on this machine
	$(call STEP,compiling the program,8 minutes)
	cargo build $(ALL)
	cargo run --quiet $(ALL) -- demo --www www --npm js

wasm: setup-build $(JS) ## build the npm package into js/

page: setup-build $(PAGE) ## compress the demo page and the npm package into page/, from where the feature `demo` takes them

$(PAGE): $(JS) $(shell find www -type f) js/scripts/page.mjs
	node js/scripts/page.mjs

# The browser tests that also run in Firefox. The others test what the two browsers have in different ways.
FIREFOX := access address loading native pages platform protocols tabs worker

test: setup-test $(PAGE) tests/browser/node_modules/.package-lock.json tests/interop/node_modules/.package-lock.json ## run every test
	cargo test $(ALL)
	node --test js/test/*.test.mjs
	node --test --test-concurrency=1 tests/browser/*.test.mjs
	BROWSER=firefox node --test --test-concurrency=1 $(FIREFOX:%=tests/browser/%.test.mjs)
	BROWSER=firefox tests/browser/namespace node --test --test-concurrency=1 tests/browser/direct.test.mjs
	BROWSER=both node --test tests/browser/pages.test.mjs
	node --test --test-concurrency=1 tests/interop/*.test.mjs
	BROWSER=firefox tests/browser/namespace node --test tests/interop/direct.test.mjs
	cargo test --locked -p throughline-lab

# The lab makes the matrix, or measures what changes of the network cost.
ASKED := $(if $(filter --mobility,$(LAB)),mobility,matrix)

lab: setup-test $(JS) tests/browser/node_modules/.package-lock.json ## print the connectivity matrix behind real NATs (needs root; LAB="--full --repeat 3" for more), or LAB="--mobility --long": what changes of the network cost
	cargo build $(ALL)
	cargo run --quiet --locked -p throughline-lab -- $(ASKED) --json target/$(ASKED).json --markdown target/$(ASKED).md $(LAB:--mobility=)

bench: setup-test $(JS) tests/browser/node_modules/.package-lock.json tests/interop/node_modules/.package-lock.json ## compare ours with iroh, rust-libp2p, js-libp2p and bare WebRTC (needs root; BENCH="--repeat 30" for more), then measure the decoders
	cargo build --release $(ALL)
	cargo build --release --locked --manifest-path benches/peers/Cargo.toml
	cargo run --quiet --locked -p throughline-lab -- compare --json target/compare.json --markdown target/compare.md $(BENCH)
	THROUGHLINE=$${CARGO_TARGET_DIR:-target}/release/throughline node benches/browser/main.mjs --markdown target/browser.md
	cargo bench $(ALL) --bench decoders -- --warm-up-time 0.3 --measurement-time 1

load: setup-test ## measure load and faults for a quarter of an hour (LOAD=--hour for more), and write docs/load.md. LOAD=--hostile: measure attacks, and attack for a day (HOURS=0 only measures)
ifeq ($(LOAD),--hostile)
	scripts/hostile $(or $(HOURS),24)
else
	cargo test --release $(ALL) --test load -- --long --markdown docs/load.md $(LOAD)
	cargo test --release $(ALL) --lib -- --ignored --nocapture thousands_of_peers_come_move_and_go
endif

fuzz: setup-build ## let libFuzzer search every decoder for a minute each (SECONDS=600 for more)
	scripts/fuzz $(or $(SECONDS),60)

mutants: setup-mutants ## change decisions of the code one by one and check that a test fails: ten seconds each for the policy, a minute and a half for the rest (SAMPLE=50 for one in 50, SHARD=0/8 for a part, FILES=src/ticket.rs for a file)
	nice $(CACHE)/bin/cargo-mutants mutants --package throughline-policy --package throughline --output $(TARGET) \
		$(if $(SAMPLE),--shard 0/$(SAMPLE) --sharding round-robin) $(if $(SHARD),--shard $(SHARD)) $(FILES:%=--re %)

# The features are checked one by one, because code that compiles with all of them may not compile with one.
FEATURES := server cli demo libp2p tokio fuzzing

check: setup-check js/node_modules/.package-lock.json ## check the format, lints on both targets and for each feature, documentation and dependencies
	cargo fmt --all --check
	cargo clippy $(ALL) --workspace --all-targets -- -D warnings
	cargo clippy --locked -- -D warnings
	for feature in $(FEATURES); do cargo clippy --locked --features $$feature -- -D warnings || exit 1; done
	$(WASM) cargo clippy --locked --target wasm32-unknown-unknown -- -D warnings
	$(WASM) cargo clippy --locked --target wasm32-unknown-unknown --features js -- -D warnings
	$(WASM) cargo clippy --locked --target wasm32-unknown-unknown --features libp2p,tokio -- -D warnings
	@# The first error says that a page has no server. The second is cargo's own, which says that there was an error.
	test "$$($(WASM) cargo clippy --locked --target wasm32-unknown-unknown --features cli 2>&1 | grep -c '^error')" = 2
	cargo fmt --check $(YEW)
	$(WASM) cargo clippy --locked $(YEW) --target wasm32-unknown-unknown -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(ALL) --no-deps
	@# cargo-deny reads the crates of every target, also of those that nothing here compiles for.
	cargo fetch --locked
	$(WASM) cargo-deny --offline --locked check --allow duplicate bans licenses sources
	@scripts/msrv

systems: setup-systems ## lint the crate for Windows, macOS and Linux on arm64, as far as that goes on this machine
	$(call STEP,compiling for three other systems,10 minutes)
	scripts/systems

options: ## write docs/options.md and js/src/options.ts from the tables of options
	THROUGHLINE_WRITE_OPTIONS=1 cargo test $(ALL) --lib config::documents

package: page ## make the crate and the npm package as for a release
	cargo package --locked --allow-dirty --no-verify
	folder=$$(mktemp -d) && tar -xf $(TARGET)/package/throughline-*.crate -C $$folder --strip-components 1 && \
		CARGO_TARGET_DIR=$(TARGET) cargo clippy $(ALL) --manifest-path $$folder/Cargo.toml -- -D warnings; \
		status=$$?; rm -rf $$folder; exit $$status
	cd js && npm pack --dry-run

packages: setup-test $(JS) tests/browser/node_modules/.package-lock.json tests/packages/node_modules/.package-lock.json ## build fresh projects of Vite, webpack, Next and others with the packed npm package, and a page in Rust, and connect their pages
	cargo build $(ALL)
	$(WASM) cargo build --locked $(YEW) --target wasm32-unknown-unknown
	node --test tests/packages/*.test.mjs

docs: setup-build $(JS) docs/node_modules/.package-lock.json ## build the site of the documents, with the API of both languages, into docs/dist/
	node docs/links.mjs
	cd docs && npx vitepress build . && npx typedoc
	RUSTDOCFLAGS="-D warnings" cargo doc $(ALL) --no-deps
	rm -rf docs/dist/rust && cp -R $(TARGET)/doc docs/dist/rust

release: setup-release js/node_modules/.package-lock.json ## make everything that a release publishes, with checksums, and publish nothing (RELEASE=--check only says whether this tree may be released)
	scripts/release $(RELEASE)

setup-build setup-check setup-mutants setup-release setup-systems setup-test: setup-%:
	@scripts/setup $*

$(JS): $(shell find src js/src js/crate -name '*.rs' -o -name '*.ts') Cargo.toml Cargo.lock wasm-pack.toml js/crate/Cargo.toml js/tsconfig.json js/scripts/build.mjs js/scripts/rustc js/node_modules/.package-lock.json
	$(call STEP,compiling the WebAssembly of the npm package,3 minutes)
	node js/scripts/build.mjs

%/node_modules/.package-lock.json: %/package-lock.json
	@echo "make: fetching the npm packages of $* (usually 5 to 40 seconds)" >&2
	cd $* && npm ci --no-audit --no-fund
	@touch $@
