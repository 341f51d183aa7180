# A thin front for CMake. `make help` lists what there is.
BUILD ?= build
JOBS  ?= $(shell nproc 2>/dev/null || echo 2)
CMAKE_FLAGS ?=
# LLAMA_PREFIX=DIR: a llama.cpp of one's own, which is installed there (docs/gpus.md). The build folder remembers it; an
# empty one takes it back.
LLAMA = $(if $(filter undefined,$(origin LLAMA_PREFIX)),,-DNK_LLAMA_PREFIX="$(abspath $(LLAMA_PREFIX))")

.PHONY: all deps test-deps build demo demo-cluster test check clients stress style asan tsan conformance fuzz bench format install dist clean help
all: build

deps:            ## install what the build needs (apt-get; llama.cpp from there or into .deps/)
	@scripts/deps

test-deps:       ## install what the tests need, too
	@scripts/deps --test

build: deps      ## build/nakshatra
	@cmake -S . -B "$(BUILD)" $(LLAMA) $(CMAKE_FLAGS) >"$(BUILD).log" 2>&1 || { cat "$(BUILD).log"; exit 1; }; rm -f "$(BUILD).log"
	@MAKEFLAGS=--no-print-directory cmake --build "$(BUILD)" -j $(JOBS) --target nakshatra

demo: build      ## the main job on a real model over two worker processes
	@NK_BUILD="$(BUILD)" scripts/demo

demo-cluster: build ## three machines (network namespaces; needs root): serve, join, join, and one that leaves and comes back
	@NK_BUILD="$(BUILD)" scripts/demo-cluster

test: test-deps build ## all tests: style, unit, system, under ASan+UBSan and TSan what has its home there, the conformance run
	@scripts/test

clients: test-deps build ## real clients from npm, agents too, one after the other; prints the table of docs/clients.md
	@NK_BUILD="$$(realpath "$(BUILD)")" scripts/clients

stress: test-deps build ## all tests three times beside a program that takes every core for moments; nothing may be flaky
	@scripts/stress-tests

trials: test-deps build ## 200 trials of recovery: workers are killed and stopped at random moments
	@scripts/trials

style:           ## is the C formatted, and no line over 100 columns?
	@scripts/check-style

check: test-deps build ## the quick part of the tests: unit and system, plain build
	@MAKEFLAGS=--no-print-directory cmake --build "$(BUILD)" -j $(JOBS)
	@cd "$(BUILD)" && ctest --output-on-failure -j $(JOBS) -L 'unit|system'

asan: test-deps  ## build-asan/ and its tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitize asan

tsan: test-deps  ## build-tsan/ and its tests under ThreadSanitizer
	@scripts/sanitize tsan

conformance: test-deps build ## every architecture llama.cpp can generate, cut and compared; writes docs/architectures.md
	@NK_BUILD="$(BUILD)" scripts/conformance

fuzz: test-deps  ## run every fuzz target for FUZZ_SECONDS (60) each
	@scripts/fuzz

bench: test-deps build ## build/nakshatra-bench, and the figures against peers; writes docs/benchmarks.md
	@MAKEFLAGS=--no-print-directory cmake --build "$(BUILD)" -j $(JOBS) --target nakshatra-bench
	@BUILD="$(BUILD)" scripts/bench

format:          ## clang-format over src, bench and tests
	@git ls-files 'src/*.[ch]' 'bench/*.[ch]' 'tests/*.[ch]' 'packaging/*.[ch]' | xargs clang-format -i

install: build   ## to PREFIX (default /usr/local); the private llama.cpp goes along where there is one
	@cmake -S . -B "$(BUILD)" -DCMAKE_INSTALL_PREFIX="$$(realpath -m "$(or $(PREFIX),/usr/local)")" >/dev/null
	@MAKEFLAGS=--no-print-directory cmake --build "$(BUILD)" -j $(JOBS) --target installable
	@cmake --install "$(BUILD)"

dist: build      ## build/nakshatra-VERSION-linux-ARCH.tar.zst: unpack it on any Linux, and it runs
	@MAKEFLAGS=--no-print-directory cmake --build "$(BUILD)" -j $(JOBS) --target distributable
	@NK_BUILD="$(BUILD)" scripts/dist

clean:           ## remove what was built; .deps/ stays
	rm -rf build build-asan build-tsan build-fuzz

help:            ## this list
	@sed -n 's/^\([-a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
