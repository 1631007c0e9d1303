# SPDX-License-Identifier: LGPL-2.1-or-later
# `make help` lists what there is. Everything goes into .venv and build/, and lab guests into
# ~/.cache/crashlend (CRASHLEND_LAB_CACHE); tools/setup.sh says what it installs.

SHELL := /bin/sh
BIN := .venv/bin
PYTEST := $(BIN)/pytest -q
RESULTS := build/trials
JOBS ?= 2
PURGATORY := src/crashlend/purgatory
N ?= 60
SEED ?= $(shell date +%Y%m%d)
SECONDS ?= 60

.PHONY: help demo test unit trials check trial exact proof bench bench-capture census predictions fuzz soak agree matrix judges conform estimate trial-system bare purgatory docs clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo: .venv/.lab ## crash a stock Debian kernel with and without lent memory, side by side
	$(BIN)/crashlend lab demo

test: unit trials ## unit tests, then at most a dozen crashes of real kernels (about 15 minutes)
	$(PYTEST) -m claims

unit: .venv/.dev ## the unit tests alone
	$(PYTEST) -m "not trial and not claims" -n $(JOBS)

trials: .venv/.dev
	rm -rf $(RESULTS)
	$(PYTEST) -m trial -n $(JOBS) --maxschedchunk=1 tests/test_trials.py

trial: .venv/.dev ## every trial of the suite; results stay in build/trials
	rm -rf $(RESULTS)
	CRASHLEND_TRIALS=all $(PYTEST) -m trial -n $(JOBS) --maxschedchunk=1 tests/test_trials.py

exact: .venv/.dev ## ask 64 guests for the smallest reservation they take; writes docs/exact-size.md
	CRASHLEND_TRIALS=all $(PYTEST) -m trial -k exact -n $(JOBS) --maxschedchunk=1 tests/test_trials.py; \
	  $(BIN)/python tools/exact_table.py $(RESULTS) > docs/exact-size.md

proof: .venv/.dev ## compare dumps with memory to the byte, flip bits of the image; writes docs/proof.md
	CRASHLEND_TRIALS=all $(PYTEST) -m trial -k "bytes- or flips-" -n $(JOBS) --maxschedchunk=1 \
	  tests/test_trials.py; \
	  cp $(RESULTS)/bytes-*.json $(RESULTS)/flips-*.json docs/results && \
	  $(BIN)/python tools/proof_page.py docs/results > docs/proof.md

bench: .venv/.lab ## what kexec-tools and crashlend need, measured (an hour); writes docs/benchmarks.md
	$(BIN)/crashlend lab bench --jobs $(JOBS) -o docs/benchmarks.md --data docs/results/bench.json \
	  --quote docs/what-it-costs.md

bench-capture: .venv/.lab ## how quick a capture is, beside kdump-tools (an hour); writes docs/capture-speed.md
	$(BIN)/crashlend lab capture-bench --rounds $(or $(ROUNDS),3) --report docs/capture-speed.md \
	  --data docs/results/capture-bench.json

conform: .venv/.lab ## boot four kernels: does ,cma do what upstream promises? writes docs/conformance
	for kernel in 6.1 6.17 7.2 7.3; do \
	  $(BIN)/crashlend lab conform --kernel $$kernel --data docs/results/conform-$$kernel.json \
	    --report docs/conformance/$$kernel.md || exit 1; done

soak: .venv/.lab ## crash N=60 random guests of SEED=... (default: today); goes on where it was ended
	$(BIN)/crashlend lab soak --trials $(N) --seed $(SEED) --jobs $(JOBS) -o build/soak-$(SEED) --resume \
	  --report docs/soak.md --data docs/results/soak.json --explained docs/results/soak-explained.json

agree: .venv/.lab ## what predict says, against kernels that are booted (an hour); writes docs/agreement.md
	$(BIN)/crashlend lab agree --jobs $(JOBS) -o build/agree --resume \
	  --report docs/agreement.md --data docs/results/agree.json

matrix: .venv/.lab ## every lender on every kernel, BIOS and UEFI (34 crashes); writes docs/compatibility.md
	$(BIN)/crashlend lab matrix matrix/compatibility.toml --jobs $(JOBS) -o build/matrix --resume \
	  --report docs/compatibility.md --data docs/results/matrix.json --quote README.md

judges: .venv/.lab ## what the kernel and kexec-tools load beside crashlend (15 minutes); writes docs/judges.md
	$(BIN)/crashlend lab judges --data docs/results/judges.json --report docs/judges.md

trial-system: .venv/.lab ## an installed Debian with kdump-tools, with crashlend and without (UTILS=DIR: kdumpctl, too)
	$(BIN)/crashlend lab system --data docs/results $(if $(UTILS),--kdump-utils $(UTILS))

estimate: .venv/.lab ## estimates beside real captures of the same hosts (20 minutes); writes docs/estimate.md
	for kernel in 6.1 7.3; do \
	  $(BIN)/python tools/estimate_proof.py --kernel $$kernel -o docs/results/estimate-$$kernel.json || exit 1; done
	$(BIN)/python tools/estimate_page.py docs/results > docs/estimate.md

check: .venv/.dev ## linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then \
	  shellcheck -S warning -s dash tools/*.sh .ci/run src/crashlend/lab/guestfiles/observe src/crashlend/lab/system/guest/*.sh && \
	  $(BIN)/python -c 'import sys; from crashlend.capture.script import KINDS, PARTS, script; sys.stdout.buffer.write(script(KINDS, PARTS))' | \
	    shellcheck -S warning -s dash -; fi

bare: ## check and test in a minimal Debian 12 (debootstrap; needs root)
	sh tools/bare.sh

purgatory: ## compile the code that runs between the two kernels
	mkdir -p build/purgatory && rm -f build/purgatory/*
	$(MAKE) -s -C $(PURGATORY)/x86_64 O=$(CURDIR)/build/purgatory
	cp build/purgatory/x86_64.bin build/purgatory/x86_64.cc $(PURGATORY)/
	chmod 644 $(PURGATORY)/x86_64.bin

census: .venv/.dev ## how fast the census is on this host (a minute; root: its own memory, too)
	$(BIN)/python tools/census_bench.py > docs/census-speed.md

predictions: .venv/.dev ## how many predictions a second, and their growth with the map (a minute)
	$(BIN)/python tools/predict_bench.py > docs/predict-speed.md

fuzz: .venv/.dev ## any bytes as command line or memory map, for SECONDS=60 (installs atheris)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/pip install -q --disable-pip-version-check -e '.[fuzz]'
	mkdir -p build/fuzz
	$(BIN)/python tools/fuzz_cmdline.py -max_total_time=$(SECONDS) -max_len=2100 build/fuzz

docs: .venv/.dev ## regenerate what the documents take from code and kept results
	$(BIN)/python tools/census_doc.py > docs/census.md
	{ printf "\043 Settings\n\nKeys of the section [crashlend] in /etc/crashlend.conf, and flags of the same name.\n\n"; \
	  $(BIN)/crashlend config --markdown; } > docs/settings.md
	$(BIN)/python -c "from crashlend.lab.faults import page; print(page(), end='')" > docs/what-can-go-wrong.md
	$(BIN)/python tools/late_table.py docs/results > docs/late-dma.md
	$(BIN)/python tools/estimate_page.py docs/results > docs/estimate.md

clean: ## remove .venv and build/
	rm -rf .venv build

.venv/.lab: pyproject.toml tools/setup.sh
	sh tools/setup.sh lab

.venv/.dev: pyproject.toml tools/setup.sh
	sh tools/setup.sh dev
