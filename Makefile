# thalweg: `make demo`, `make test`, `make bench`, `make install PREFIX=...`; each does its own set-up.

SHELL := /bin/bash
PREFIX ?= /usr/local
BUILD := build
LIB := $(BUILD)/lib
SCRATCH ?= .build
# One instruction set only (development): THALWEG_MARCH=native. Empty: baseline, x86-64-v3 and x86-64-v4, chosen by the dynamic loader.
THALWEG_MARCH ?=
ARCH := $(shell uname -m)
SOURCES := $(shell find Sources include Package.swift -name '*.swift' -o -name '*.h' -o -name '*.c' -o -name '*.map' 2>/dev/null)

.PHONY: all library demo test bench install clean setup

all: library

library: $(LIB)/.stamp-$(if $(THALWEG_MARCH),$(THALWEG_MARCH),all)

define build_variant # $(1): march, $(2): destination folder
	swift build -c release --product thalweg --scratch-path $(SCRATCH)$(if $(1),/$(1)) -Xswiftc -static-stdlib \
	  $(if $(1),-Xcc -march=$(1)) -Xlinker -soname=libthalweg.so.1 -Xlinker -s \
	  -Xlinker --version-script=$(CURDIR)/Sources/packaging/libthalweg.map -Xlinker --no-undefined
	mkdir -p $(2)
	install -m 755 $(SCRATCH)$(if $(1),/$(1))/release/libthalweg.so $(2)/libthalweg.so.1

endef

$(LIB)/.stamp-all: $(SOURCES)
	rm -rf $(LIB)
ifeq ($(ARCH),x86_64)
	$(call build_variant,x86-64,$(LIB))
	$(call build_variant,x86-64-v3,$(LIB)/glibc-hwcaps/x86-64-v3)
	$(call build_variant,x86-64-v4,$(LIB)/glibc-hwcaps/x86-64-v4)
else
	$(call build_variant,,$(LIB))
endif
	ln -sf libthalweg.so.1 $(LIB)/libthalweg.so
	touch $@

$(LIB)/.stamp-$(THALWEG_MARCH): $(SOURCES)
	rm -rf $(LIB)
	$(call build_variant,$(THALWEG_MARCH),$(LIB))
	ln -sf libthalweg.so.1 $(LIB)/libthalweg.so
	touch $@

clean:
	rm -rf $(BUILD) .build .venv python/build python/src/*.egg-info python/src/thalweg/lib
