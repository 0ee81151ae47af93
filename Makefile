# Developer commands. `make help` lists the targets; CONTRIBUTING.md explains them.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Byte-compiling all of torch takes longer than installing it; Python compiles modules on import and keeps the result,
# unless this variable, which container images set, tells it not to.
PIP := $(PY) -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
# Output folder of `make gpu`, relative to the repository.
OUT ?= benchmarks/results/gpu-out

CXX_SOURCES = $(shell find csrc tests build_tools -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup build demo test proof test-avx512 fuzz sanitize bench lint format docs linkcheck wheel gpu clean

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: build  ## .venv with everything pinned, and resnet_fused built in place

# One stamp file per installation step, so that make repeats only what changed.
$(VENV)/.created:
	@$(PYTHON) build_tools/check_python.py
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/no-deps.txt $(VENV)/.created
	$(PIP) -r requirements/dev.txt
	$(PIP) --no-deps -r requirements/no-deps.txt
	@touch $@

# With a driver but no nvcc, install nvcc from PyPI. Otherwise install nothing.
$(VENV)/.cuda: requirements/cuda.txt $(VENV)/.dev
	@if [ -e /proc/driver/nvidia ] || command -v nvidia-smi >/dev/null; then \
	  $(PY) -m build_tools.toolchain || $(PIP) -r requirements/cuda.txt; \
	fi
	@touch $@

$(VENV)/.editable: pyproject.toml setup.py $(VENV)/.cuda
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.dev
	$(PIP) -r requirements/bench.txt
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.dev
	$(PIP) -r requirements/docs.txt
	@touch $@

build: $(VENV)/.editable  ## compile what changed
	@$(PY) setup.py --quiet build_ext --inplace

demo: build  ## the demo
	$(PY) -m resnet_fused demo $(ARGS)

# Mutations in `make test`: sample (chosen by the commit's hash), all, none, or kernel families: sm80,bn.
MUTATIONS = sample
# Tests that passed and have not changed are not rerun; `make test VERDICTS=` runs everything.
VERDICTS = --verdicts

test: build  ## every test, and a sample of the mutations; ARGS="-k stem -x" is passed on
	$(PY) -m pytest tests -n auto --dist worksteal $(VERDICTS) --mutations=$(MUTATIONS) $(ARGS)

proof: MUTATIONS = all
proof: build  ## every mutation and every emulated kernel, no verdict of an earlier run (MUTATIONS=sm80,bn)
	$(PY) -m pytest tests -n auto --dist worksteal -m emulator --mutations=$(MUTATIONS) $(ARGS)

# Tests of the CPU engines. Where AVX-512 is emulated they take minutes.
CPU_TESTS = $(addprefix tests/test_, ops.py packed_weights.py block_op.py functional.py blocks.py conv_stats.py \
  conv_backward_input.py conv_backward_weight.py training_ops.py training_op.py training_pool.py training_blocks.py \
  resizable.py head.py pack_in_task.py)
FLAVOUR ?= emulated-avx512

test-emulated: build  ## the CPU engines' tests with AVX-512 and AMX emulated on AVX2; FLAVOUR=emulated-amx on AVX-512
	@RESNET_FUSED_FLAVOUR=$(FLAVOUR) $(PY) setup.py --quiet build_ext --inplace
	RESNET_FUSED_LIBRARY=build/$(FLAVOUR)/_C.abi3.so $(PY) -m pytest $(CPU_TESTS) $(ARGS)

N ?= 5000
SEED ?= 1

fuzz: build  ## N random problems against float64, from SEED on (N=5000 SEED=1)
	$(PY) -m tests.fuzz --problems $(N) --seed $(SEED)

# Python itself leaks. Preloading libstdc++ lets the sanitizer's interceptor find the real __cxa_throw.
SANITIZED = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 RESNET_FUSED_LIBRARY=build/sanitize/_C.abi3.so

sanitize: build  ## the CPU library under the address and undefined-behaviour sanitizers
	@RESNET_FUSED_FLAVOUR=sanitize $(PY) setup.py --quiet build_ext --inplace
	$(SANITIZED) $(PY) -m tests.fuzz --problems 200 --seed $(SEED)
	$(SANITIZED) $(PY) -m pytest -q -n auto tests/test_op_contract.py tests/test_packed_weights.py tests/test_ops.py \
	  tests/test_grouped.py tests/test_head.py tests/test_pack_in_task.py tests/test_program.py tests/test_direct_gradient.py \
	  --combinations=2 \
	  -k "(packed_weights or op_contract or corners or resnet_shapes or groups or group_widths or geometries or \
	  bn_add_act or any_shape or any_strides or frozen_weight or broken_code) and not reused_address" $(ARGS)

bench: build $(VENV)/.bench  ## time the kernels and whole networks
	$(PY) -m pytest benchmarks --benchmark-only $(ARGS)
	$(PY) -m resnet_fused bench

lint: $(VENV)/.dev  ## ruff, clang-format, mypy and codespell; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(PY) -m mypy
	git ls-files -z | xargs -0 $(VENV)/bin/codespell --check-hidden

format: $(VENV)/.dev  ## let ruff and clang-format rewrite
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

# -n -W: a link, anchor, reference or page that leads nowhere is an error.
SPHINX = $(PY) -m sphinx -c docs -n -W --keep-going --quiet

docs: build $(VENV)/.docs  ## the site, build/site/index.html; checks every link inside it
	$(SPHINX) . build/site $(ARGS)

linkcheck: build $(VENV)/.docs  ## checks links to web sites; needs network
	$(SPHINX) -b linkcheck . build/linkcheck $(ARGS)

wheel: $(VENV)/.cuda  ## dist/: the wheel, audited
	$(PY) -m build_tools.wheel dist

gpu:  ## verify and time every kernel on a GPU machine with its own torch; writes to OUT (ARGS="--stage time")
	@$(PYTHON) build_tools/gpu.py --out "$(OUT)" $(ARGS)

clean:  ## remove what was built; keeps .venv
	rm -rf build dist *.egg-info resnet_fused/*.so resnet_fused/_build_info.py
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
