# make demo and make test do all set-up themselves; both are quick to repeat.
BUILD := build/release
JOBS  ?= $(shell nproc)
TEXT  := .cache/kjv.txt
RUN   := runs/scripture
PAGE  ?= docs/performance.md
PEERS ?= $(filter-out common models page,$(basename $(notdir $(wildcard benchmarks/peers/*.py))))

.PHONY: help setup build demo test bench bench-peers fuzz asan format check-format lint docs studies clean
.DEFAULT_GOAL := help

help:
	@echo "seqloom: train, compare and stream sequence models"
	@echo "  make demo          set up, build, train a small language model on a real text, stream a continuation"
	@echo "  make test          set up, build, run all tests"
	@echo "  make build         set up and build only: $(BUILD)/seqloom"
	@echo "  make studies       run the studies: compare models, check claims"
	@echo "  make bench         measure the kernels (Google Benchmark) and the demo model"
	@echo "  make bench-peers   measure against PyTorch and other engines, into docs/performance.md"
	@echo "  make fuzz          fuzz the readers of files for 30 s each (clang)"
	@echo "  make asan          the tests under the address and undefined-behaviour sanitizers"
	@echo "  make format        clang-format all sources;  make lint: clang-tidy"
	@echo "  make docs          rewrite what docs/ generates from the code"
	@echo "  make clean         remove build/"

setup:
	@scripts/setup.sh

build: setup
	@cmake --preset release >build-configure.log 2>&1 || { cat build-configure.log; rm -f build-configure.log; exit 1; }
	@rm -f build-configure.log
	@cmake --build $(BUILD) -j $(JOBS)

$(TEXT): | setup
	@mkdir -p $(@D)
	@bible -f 'gen1:1-rev22:21' > $@.part && mv $@.part $@

demo: build $(TEXT)
	@echo; echo "== 1. Train Mamba layers and one attention layer on the King James Bible (bytes, 4.4 MB)"
	$(BUILD)/seqloom train recipes/scripture.toml --out $(RUN) --resume
	@echo; echo "== 2. Bits per byte on the end of the text, which training did not see"
	@tail -c 100000 $(TEXT) > .cache/held-out.txt
	$(BUILD)/seqloom eval $(RUN) --data .cache/held-out.txt
	@echo; echo "== 3. Stream a continuation, token by token"
	$(BUILD)/seqloom generate $(RUN) --prompt 'And the LORD said unto ' --tokens 400 --temperature 0.7 --seed 1

test: build
	@ctest --test-dir $(BUILD) --output-on-failure --timeout 1500

studies: build $(TEXT)
	$(BUILD)/seqloom study studies/*.toml --page docs/claims.md

bench: build
	$(BUILD)/ops_benchmark --benchmark_min_time=0.2
	$(BUILD)/seqloom bench recipes/scripture.toml

# make bench-peers QUICK=--quick PAGE=/tmp/page.md; PEERS="limits attention" runs only these
bench-peers: build
	@rm -rf $(BUILD)/bench-peers
	@for peer in $(PEERS); do echo; echo "== $$peer"; \
	  .venv/bin/python benchmarks/peers/$$peer.py $(BUILD)/libseqloom.so $(QUICK) --json $(BUILD)/bench-peers/$$peer.json \
	    || failed="$$failed $$peer"; \
	done; \
	.venv/bin/python benchmarks/peers/page.py $(PAGE) $(BUILD)/bench-peers/*.json && \
	  { [ -z "$$failed" ] || { echo "bench-peers: failed:$$failed" >&2; exit 1; }; }

fuzz: setup
	@scripts/fuzz.sh 30

asan: setup
	@cmake --preset asan >/dev/null
	@cmake --build build/asan -j $(JOBS)
	@ctest --test-dir build/asan --output-on-failure --timeout 3000

format:
	@git ls-files '*.h' '*.cpp' | xargs clang-format -i

check-format: setup
	@git ls-files '*.h' '*.cpp' | xargs clang-format --dry-run --Werror

lint: build
	@JOBS=$(JOBS) scripts/lint.sh

docs: build
	@scripts/docs.sh

clean:
	rm -rf build
