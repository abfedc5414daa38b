# `make` lists the verbs. Every verb that needs the environment sets it up first.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Without kept bytecode every process would compile all of ours and rewrite every assert again.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := .venv/bin/pytest --durations=5
# What tests write is made durable thousands of times: in memory that costs nothing. Where there is
# less than 2 GB of it, or no program may be started from it, the disk has to do.
MEMORY := /dev/shm
ifeq ($(shell test "$$(df --output=avail -k $(MEMORY) 2>/dev/null | tail -1)" -gt 2000000 2>/dev/null && \
    ! findmnt -no OPTIONS $(MEMORY) | grep -qw noexec && echo fits),fits)
export PYTEST_DEBUG_TEMPROOT := $(MEMORY)
endif
# Modules that write files of the repository: --write makes them, --check says whether they are current.
GENERATORS := imlmesh_drivers.manifests
# How many seeded worlds `make sim` runs.
WORLDS ?= 2000
# How many random plans `make sim` compares with the reference interpreter.
CASES ?= 500
# How often `make chaos` does each scenario, and how often it kills at random instants.
RUNS ?= 1
KILLS ?= 200
# How long `make chaos` keeps every core busy.
SECONDS ?= 300
# The first seed: a long run can be cut into parts, and a failing world run again.
FROM ?= 1

.PHONY: help setup demo test unit check bench bench-peers sim chaos firmware lock clean

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## make this checkout ready: .venv, mosquitto; instant when nothing changed
	@setup/run.sh

demo: setup ## a mesh of three nodes runs a plan and survives the loss of one; under 60 s
	@.venv/bin/imlmesh demo run

# pytest's 5 is "nothing to run": right for a half that no word of ARGS fits, wrong without any.
NONE_FITS := $(if $(strip $(ARGS)),|| [ $$? -eq 5 ])

# Half of the time a test waits for processes and sockets: six at once keep two cores busy.
# In the order of the folders: else files of few and long tests would begin last. Of those that run
# alone only their files are looked at.
test: setup ## all tests; ARGS="-k word" narrows
	$(PYTEST) -n 6 --dist loadfile --no-loadscope-reorder -m "not alone" $(ARGS) tests $(NONE_FITS)
	$(PYTEST) -n 2 --dist loadfile -m alone $(ARGS) \
	    $$(grep -rl --include='test_*.py' 'mark\.alone' tests) $(NONE_FITS)

# By files, so that one process alone parses the checkout, and that first.
unit: setup ## unit and architecture tests alone; under 10 s
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) tests/architecture tests/unit

check: setup ## style, types, import rules, vocabulary, sizes, generated files
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	@for generator in $(GENERATORS); do \
	    echo "python -m $$generator --check"; .venv/bin/python -m $$generator --check || exit 1; done
	.venv/bin/python docs/pages.py --check
	$(PYTEST) -q tests/architecture

bench: setup ## measure; a JSON line each
	@.venv/bin/python -m bench

bench-peers: setup ## ours beside Ray, Celery and Dask, installed into .peers; under 5 min
	@.venv/bin/python -m bench.peers

sim: setup ## simulated worlds and reference cases, in virtual time; WORLDS=100000 CASES=20000
	CASES=$(CASES) WORLDS=$(WORLDS) FROM=$(FROM) $(PYTEST) -n 2 $(ARGS) tests/sim tests/reference

chaos: setup ## break a mesh of real processes and measure; KILLS=1000 RUNS=10 ARGS="--report docs/RELIABILITY.md"
	@.venv/bin/imlmesh chaos --runs $(RUNS) --kills $(KILLS) --seconds $(SECONDS) $(ARGS)

firmware: setup ## check firmware-configs by the programs that read them; ESPHome comes into .esphome
	@setup/esphome.sh >/dev/null
	$(PYTEST) $(ARGS) tests/integration/test_firmware_configs.py tests/integration/test_firmware_esphome.py

lock: ## write requirements/*.txt anew from pyproject.toml
	@setup/lock.sh

clean: ## remove what set-up and tests made here
	rm -rf .venv .uv .peers .esphome .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
