# Everything starts here, from nothing: each target sets up what it needs in .venv and skips what is done.
# Nothing is written outside this folder.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check
LOCK    := requirements.lock
NATIVE  := $(shell find native -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)
# An editable install remembers which file each module was, also one that became a folder.
PACKAGES := $(wildcard phicourse/*/__init__.py)
LLAMA   := $(shell sed -n 's/^llama_cpp_python==//p' $(LOCK))
SDIST   := .oracles/llama_cpp_python-$(LLAMA).tar.gz
SAY     := @echo "phicourse:"

CACHE   := $(CURDIR)/.cache
export PIP_CACHE_DIR      ?= $(CACHE)/pip
export XDG_CACHE_HOME     := $(CACHE)
export XDG_CONFIG_HOME    := $(CACHE)/config
export XDG_DATA_HOME      := $(CACHE)/share
export MPLCONFIGDIR       := $(CACHE)/matplotlib
export IPYTHONDIR         := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR   := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export HF_HOME            := $(CACHE)/huggingface
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/torchinductor
export PYTHONNOUSERSITE   := 1
# pip asks rustc for its version, and rustup's would then make its folder in a home that has none.
ifeq ($(wildcard $(HOME)/.rustup),)
export RUSTUP_HOME        ?= $(CACHE)/rustup
endif

# When nobody watches: no exercise counts as tried, and widgets show the picture that needs no kernel.
UNATTENDED := PHICOURSE_PROGRESS= PHICOURSE_STATIC=1
BROWSER    := tests/notebooks/test_browser.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run lab test lint test-native test-sanitize test-python test-notebooks test-browser notebooks student solved bench bench-convert bench-quantize bench-notebooks train oracles clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

run: $(VENV)/.run ## checkpoint -> F16 -> Q4_K_M -> a chat answer, a table and a picture
	$(SAY) "from the checkpoint in data/phi-tiny to a chat answer; the files go to out/"
	@$(BIN)/phicourse demo --out out --force

lab: $(VENV)/.lab ## JupyterLab on notebook 00
	$(SAY) "opening JupyterLab on notebook 00; Ctrl-C ends it"
	@$(BIN)/jupyter lab notebooks/00_from_checkpoint_to_chat.ipynb

test: lint test-native test-python test-notebooks test-browser ## everything that must hold

lint: $(VENV)/.test
	$(SAY) "checking format, lint and types"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test-native: $(VENV)/.test
	$(SAY) "building and running the C++ tests"
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S native -B build/tests -G Ninja >build/tests.log 2>&1 || (cat build/tests.log; false)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/tests >build/tests.log 2>&1 || (cat build/tests.log; false)
	@$(BIN)/ctest --test-dir build/tests --parallel 2 --output-on-failure
ifneq ($(shell command -v qemu-aarch64 && command -v aarch64-linux-gnu-g++),)
	$(SAY) "the same for 64-bit ARM, in an emulator"
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S native -B build/aarch64 -G Ninja --toolchain aarch64.cmake >build/tests.log 2>&1 || (cat build/tests.log; false)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/aarch64 >build/tests.log 2>&1 || (cat build/tests.log; false)
	@$(BIN)/ctest --test-dir build/aarch64 --parallel 2 --output-on-failure
else
	$(SAY) "64-bit ARM is not tested: apt install g++-aarch64-linux-gnu qemu-user"
endif

test-sanitize: $(VENV)/.test ## the C++ tests with every memory access, overflow and data race watched
	@for kind in address,undefined thread; do \
	  echo "phicourse: the C++ tests under -fsanitize=$$kind"; \
	  export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	  cmake -S native -B build/$$kind -G Ninja -DPHI_SANITIZE=$$kind >build/tests.log 2>&1 && \
	  cmake --build build/$$kind >build/tests.log 2>&1 || { cat build/tests.log; exit 1; }; \
	  ctest --test-dir build/$$kind --parallel 2 --output-on-failure || exit 1; \
	done

test-python: $(VENV)/.test $(SDIST)
	$(SAY) "running the Python tests"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=$(BROWSER)

test-notebooks: $(VENV)/.test
	$(SAY) "running the notebooks from top to bottom"
	@$(BIN)/python -m phicourse.exercises.variants solved
	@$(UNATTENDED) $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=120 -p no:cacheprovider notebooks solved

# Debian's chromium or Google's Chrome; where neither is installed, the tests say so in a line and are skipped.
test-browser: $(VENV)/.test ## three notebooks in JupyterLab in a real browser; the pictures go to out/browser
	$(SAY) "running notebooks in JupyterLab in a browser"
	@$(BIN)/python -m pytest -rs $(BROWSER)

notebooks: $(VENV)/.lab ## run the notebooks and keep their outputs, as they are committed
	$(SAY) "running the notebooks and saving their outputs"
	@$(BIN)/python -m phicourse.exercises.variants address
	@$(BIN)/python -m phicourse.exercises.timetable
	@$(UNATTENDED) $(BIN)/jupyter nbconvert --log-level WARN --to notebook --inplace --execute \
	  --NotebookClient.record_timing=False --NotebookClient.store_widget_state=False notebooks/*.ipynb
	@$(BIN)/jupyter nbconvert --log-level WARN --to notebook --inplace --coalesce-streams notebooks/*.ipynb

student: $(VENV)/.run ## the notebooks without solutions, in student/
	$(SAY) "writing the notebooks without solutions to student/"
	@$(BIN)/python -m phicourse.exercises.variants student

solved: $(VENV)/.run ## the notebooks with every exercise solved, in solved/
	$(SAY) "writing the notebooks with every exercise solved to solved/"
	@$(BIN)/python -m phicourse.exercises.variants solved

bench: $(VENV)/.test $(SDIST) ## speed side by side with llama.cpp, as ratios
	$(SAY) "measuring against llama-cpp-python $(LLAMA)"
	@$(BIN)/python tests/benchmarks/bench_vs_llama_cpp.py

bench-convert: $(VENV)/.test $(SDIST) ## a 3.8 billion parameter checkpoint to F16 and Q4_K_M (16 GB of disk)
	$(SAY) "converting 7.6 GB of random weights, ours and llama.cpp's way"
	@$(BIN)/python tests/benchmarks/bench_convert.py

bench-quantize: $(VENV)/.test ## every quantized type, and 3.8 billion parameters to Q4_K_M (20 GB of disk)
	$(SAY) "quantizing rows of every type, then 7.6 GB of random weights, ours and llama.cpp's way"
	@$(BIN)/python tests/benchmarks/bench_quantize.py
	@$(BIN)/python tests/benchmarks/bench_quantize.py --model

bench-notebooks: $(VENV)/.test ## seconds and memory of each notebook, into the table of the README
	$(SAY) "measuring the notebooks"
	@$(UNATTENDED) $(BIN)/python tests/benchmarks/bench_notebooks.py

train: $(VENV)/.lab ## train phi-tiny, or go on from its last checkpoint
	$(SAY) "training phi-tiny; Ctrl-C stops, the same command resumes"
	@$(BIN)/python data/train_phi_tiny.py --resume

oracles: $(SDIST) ## llama.cpp's own converter, for the tests

clean: ## remove what was built and downloaded, keep .venv
	$(SAY) "removing build/, out/, caches"
	@rm -rf build out solved .cache .oracles .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find phicourse -name '*.so' -delete; rm -f $(VENV)/.run $(VENV)/.lab $(VENV)/.test

$(BIN)/python:
	$(SAY) "creating a Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  (echo "phicourse: needs Python 3.11 or newer; try make PYTHON=python3.12" >&2; false)
	@$(PYTHON) -m venv $(VENV)

# --no-build-isolation: the build tools come from the same lock, and a rebuild after a change is incremental.
$(VENV)/.run: pyproject.toml $(LOCK) $(NATIVE) $(PACKAGES) | $(BIN)/python
	$(SAY) "installing the package and building the C++ engine (about a minute the first time)"
	@mkdir -p build
	@$(PIP) install -c $(LOCK) scikit-build-core nanobind cmake ninja
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install -c $(LOCK) --no-build-isolation -e .
	@$(BIN)/python -c 'import phicourse.native' 2>/dev/null || echo "phicourse: the C++ engine could not be" \
	  "built; NumPy and PyTorch will do the work, slowly ($(BIN)/phicourse doctor says what is missing)" >&2
	@touch $@

# llama-cpp-python is compiled here: about five minutes on two cores, once.
$(VENV)/.lab: $(VENV)/.run
	$(SAY) "installing JupyterLab, PyTorch and llama-cpp-python (several minutes the first time)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PIP) install -c $(LOCK) --no-build-isolation llama-cpp-python
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install -c $(LOCK) --no-build-isolation -e '.[lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	$(SAY) "installing the tools that check the course"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install -c $(LOCK) --no-build-isolation -e '.[test]'
	@touch $@

$(SDIST): $(LOCK) | $(BIN)/python
	$(SAY) "downloading llama.cpp's converter (inside the source distribution of llama-cpp-python)"
	@mkdir -p .oracles
	@$(PIP) download --no-binary :all: --no-deps -d .oracles llama-cpp-python==$(LLAMA)
	@tar -xzf $@ -C .oracles && rm -rf .oracles/llama.cpp
	@mv .oracles/llama_cpp_python-$(LLAMA)/vendor/llama.cpp .oracles/llama.cpp
	@rm -rf .oracles/llama_cpp_python-$(LLAMA) && touch $@
