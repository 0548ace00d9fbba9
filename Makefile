# objblk: build, test, try.
# CARGO_TARGET_DIR, OBJBLK_LAB (state of the test servers and guests) and PREFIX are respected.

CARGO ?= cargo
PREFIX ?= /usr/local
KERNEL ?= 6.12
SEEDS ?= 4000
HOURS ?= 8
OBJBLK_LAB ?= /tmp/objblk-lab
target_dir := $(or $(CARGO_TARGET_DIR),target)

export OBJBLK_LAB
export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help build test test-full bench bench-flush crash crash-vm sim sim-soak fuzz check demo vm-shell clean-lab install bootstrap-build bootstrap fmt clippy doc doctest

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: bootstrap-build ## build the release binary
	$(CARGO) build --release --locked

# Everything below uses the dev profile, so that dependencies are compiled once. One at a time, in this
# order, whatever -j says: the cheap checks first, the tests' summary last.
test: ## install what is missing, then run all checks and all tests, those in guests too
	@$(MAKE) --no-print-directory -j1 bootstrap fmt clippy doc doctest
	$(CARGO) nextest run --locked

test-full: bootstrap ## the long versions of the system tests, with their figures
	OBJBLK_FULL=1 $(CARGO) nextest run --locked --profile full --test system

# Optimised as the release is. SECONDS counts on the command line only: shells have one of their own.
bench: bootstrap ## how fast it is beside its limits (PARTS=..., ROUNDS=5, SECONDS= of each turn)
	$(CARGO) bench --locked --bench speed -- $(PARTS) $(if $(ROUNDS),rounds=$(ROUNDS)) \
		$(if $(filter command line,$(origin SECONDS)),seconds=$(SECONDS))

bench-flush: bootstrap ## what a flush costs beside fdatasync, a PUT and a plain file (PARTS=...: some of it)
	$(CARGO) bench --locked --profile dev --bench flush -- $(PARTS)

sim: bootstrap-build ## simulate SEEDS worlds of faults, crashes and rival owners (FIRST=n begins there)
	OBJBLK_SIM_SEEDS=$(SEEDS) OBJBLK_SIM_FIRST=$(or $(FIRST),0) \
		$(CARGO) test --locked --test sim run::seeds -- --nocapture

sim-soak: bootstrap-build ## simulate worlds that nobody has seen yet, for HOURS
	OBJBLK_SIM_HOURS=$(HOURS) OBJBLK_SIM_FIRST=$(or $(FIRST),$(shell date +%s)000) \
		$(CARGO) test --locked --test sim run::seeds -- --nocapture

fuzz: ## fuzz every parser for TIME seconds (600), or those in TARGETS; needs cargo-fuzz
	@scripts/fuzz.sh -t $(or $(TIME),600) $(TARGETS)

crash-vm: bootstrap ## power cuts, kills and takeovers in guests: the long versions, with their figures
	OBJBLK_FULL=1 $(CARGO) nextest run --locked --profile full --test vm_crash

crash: bootstrap ## long loops of kill -9 and takeovers, natively, with their figures
	OBJBLK_FULL=1 $(CARGO) nextest run --locked --profile full --test system \
		-E 'test(/kill|late|rough|takeover|refusals/)'

check: ## the quick part of test: format, clippy, docs, unit tests
	@$(MAKE) --no-print-directory -j1 fmt clippy doc
	$(CARGO) nextest run --locked --lib --bins

demo: ## watch a disk being made, filled, detached, attached again and verified
	@scripts/demo.sh

vm-shell: ## a shell in a guest whose kernel has ublk (KERNEL=6.12 or 7.2)
	@scripts/vm/run.sh -S -k $(KERNEL) $(addprefix -p ,$(wildcard $(target_dir)/debug/objblk))

clean-lab: ## stop the test servers and remove their state and the guests'
	@test ! -x scripts/s3/ceph.sh || scripts/s3/ceph.sh stop
	rm -rf --one-file-system -- "$(OBJBLK_LAB)/ceph" "$(OBJBLK_LAB)/vm"

install: build ## install the release binary under PREFIX (/usr/local)
	install -D -m 755 $(target_dir)/release/objblk $(DESTDIR)$(PREFIX)/bin/objblk

bootstrap-build:
	@scripts/bootstrap.sh build

bootstrap:
	@scripts/bootstrap.sh

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

# With --examples the dev-dependencies count, as they do for clippy: without them some dependencies
# would have other features and be checked a second time.
doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib --examples

doctest:
	$(CARGO) test --locked --doc --quiet
