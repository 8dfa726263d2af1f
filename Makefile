# `make help` lists what there is to do. Every target makes .venv by itself where it is missing.

PYTHON ?= python3
VENV := .venv
PROCESSES ?= 2
SELECT := -m "not slow"
BIN := $(VENV)/bin
RUN = $(BIN)/python -m benchmarks.run
# Python compiles what it imports; compiling all of torch takes more than half of the time of an installation.
INSTALL := pip install --disable-pip-version-check --no-compile

# Where Python keeps nothing that it compiles, each process of the tests compiles torch and Lightning anew, for some 15 seconds.
unexport PYTHONDONTWRITEBYTECODE

# One environment for all. A stamp says which extra it holds; dev includes all that the demo and the site need.
DEV := $(VENV)/.installed-dev
DEMO := $(or $(wildcard $(DEV)),$(VENV)/.installed-demo)

# Two targets in one call (make -j) must not install into the environment at the same time.
.NOTPARALLEL:
.PHONY: help demo test quick test-all bench-quick alone ecosystem lint tutorials docs bench bench-nets bench-hidden bench-neuromorphic bench-events bench-training bench-solvers bench-paper bench-temporal bench-scale bench-steps bench-faults fuzz gpu clean

help:
	@echo 'make demo    untrained network to certified classifier, on scikit-learn digits'
	@echo 'make test    lint, types, and the tests but for slow ones (PROCESSES=2; COUNT=1 counts the lines that ran)'
	@echo 'make quick FILE=snn_recon_plugin/convex/path.py  the tests nearest to a file, in under 20 seconds'
	@echo 'make test-all  the same with slow tests, among them the notebooks and several processes'
	@echo 'make alone   one network of each library, in an environment without the others'
	@echo 'make ecosystem  a net counted by NeuroBench, events from Tonic, tar files of WebDataset, in an environment with them'
	@echo 'make lint    lint and types only'
	@echo 'make tutorials  the notebooks, run and stored with their outputs, ten minutes (ARGS="tutorials/05_norse.ipynb" runs one)'
	@echo 'make docs    the site, in build/site; warnings are errors, and every link inside it is followed'
	@echo 'make bench-quick  ratios of seconds and memory against stored ones, in a minute; names what grew'
	@echo 'make bench   what the README, the report page and the tables of networks show, half an hour (ROOT=DIR of MNIST)'
	@echo 'make bench-nets      nets and Lightning modules as users write them, half an hour'
	@echo 'make bench-hidden    hidden layers rebuilt on MNIST, hours (ROOT=DIR of MNIST, SPEECH=DIR of the spoken digits)'
	@echo 'make bench-neuromorphic  NeuroBench'"'"'s metrics of a net before and after, a minute'
	@echo 'make bench-events    SHD, SSC, N-MNIST and DVS Gesture through Tonic, hours (ROOT=DIR of the recordings)'
	@echo 'make bench-training  the callback against tuned training, and the finish behind training, hours (ROOT=DIR of MNIST, SPEECH=DIR of the spoken digits)'
	@echo 'make bench-solvers   the solver against its peers, hours (ROOT=DIR of MNIST)'
	@echo 'make bench-paper     the paper'"'"'s tables, every method of it and ours, hours (ROOT=DIR of MNIST)'
	@echo 'make bench-temporal  sequences, starts and trainings, hours (ROOT=DIR of MNIST, SPEECH=DIR of the spoken digits)'
	@echo 'make bench-scale     peak memory of a training step, a start and a refit, an hour'
	@echo 'make bench-steps     training steps with fast_steps and without, ten minutes (ROOT=DIR of MNIST)'
	@echo 'make bench-faults    planted faults, and which of them the tests find, hours'
	@echo 'make fuzz    10,000 random nets, data, options and faults, and 3,000 interrupts at random lines (ARGS="--seed 17" repeats one)'
	@echo 'make gpu     the tests that need a GPU, each with its seconds'
	@echo 'make clean   remove .venv, caches and build results'
	@echo 'PYTHON=...   the interpreter that .venv is made from (now: $(PYTHON))'

demo: $(DEMO)
	OMP_NUM_THREADS=1 $(BIN)/python -m snn_recon_plugin $(ARGS)

# Two processes of one thread each: the many small problems of the tests gain nothing from a second thread.
# COUNT=1 counts the lines that ran, and fails below 95 %. Where SlipCover itself checks that, it shows the lines of the main process alone.
# One test needs code without probes.
LINES := build/lines.json
test: lint
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python $(if $(COUNT),-m slipcover --json --out $(LINES)) -m pytest -n $(PROCESSES) --dist worksteal --durations 10 $(SELECT) $(ARGS)
	$(if $(COUNT),$(BIN)/python -m slipcover --merge $(LINES) --out $(LINES) --fail-under 95)
	$(if $(COUNT),$(BIN)/python -m pytest -q tests/networks/private/test_quiet.py -k any_line)

quick: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quick $(FILE)

test-all:
	$(MAKE) test SELECT= COUNT=1

alone: $(VENV)-snntorch/.installed $(VENV)-norse/.installed $(VENV)-spikingjelly/.installed
	ALONE=snntorch $(VENV)-snntorch/bin/python -m pytest tests/alone
	ALONE=norse $(VENV)-norse/bin/python -m pytest tests/alone
	ALONE=spikingjelly $(VENV)-spikingjelly/bin/python -m pytest tests/alone

ecosystem: $(VENV)-ecosystem/.installed
	OMP_NUM_THREADS=1 $(VENV)-ecosystem/bin/python -m pytest tests/ecosystem

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy

tutorials: $(DEV)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python tutorials/store_outputs.py $(ARGS)

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python docs/assets/check_site.py build/site

bench: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) networks --root $(ROOT) $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) tutorial_5 --root $(ROOT) $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) demo --again

bench-nets: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) user_nets --again
	OMP_NUM_THREADS=1 $(RUN) user_modules --again

bench-quick: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ratios $(ARGS)

bench-hidden: $(DEV)
	$(RUN) hidden --root $(ROOT) --threads 2 $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) hidden_rules --root $(ROOT) --speech $(SPEECH)

bench-neuromorphic: $(VENV)-ecosystem/.installed
	$(VENV)-ecosystem/bin/python -m benchmarks.run neuromorphic $(ARGS)

bench-events: $(VENV)-ecosystem/.installed
	OMP_NUM_THREADS=1 $(VENV)-ecosystem/bin/python -m benchmarks.run events --root $(ROOT) $(ARGS)

bench-training: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) training --root $(ROOT) --speech $(SPEECH) $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) finish --root $(ROOT) --speech $(SPEECH) $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) own_loops

bench-solvers: $(DEV)
	$(RUN) solvers --root $(ROOT) $(ARGS)

bench-paper: $(DEV)
	$(RUN) paper --root $(ROOT) --threads 2

bench-temporal: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) temporal --root $(ROOT) --speech $(SPEECH) $(ARGS)

bench-scale: $(DEV)
	$(RUN) scale $(ARGS)

bench-steps: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) steps --root $(ROOT) $(ARGS)

bench-faults: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) faults $(ARGS)

fuzz: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz $(ARGS)
	[ -n "$(ARGS)" ] || OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --interrupts 3000

# A torch that pip finds without an index (its find-links option, say a CPU build) is taken first: the index's newest
# one may be gigabytes larger. Without such a torch the first install does nothing and the second brings it.
$(VENV)/.installed-%: pyproject.toml snn_recon_plugin/__init__.py
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) --quiet --no-index --no-deps torch torchvision 2>/dev/null || true
	$(BIN)/$(INSTALL) --editable '.[$*]'
	touch $@

$(VENV)-%/.installed: pyproject.toml snn_recon_plugin/__init__.py
	[ -x $(VENV)-$*/bin/pip ] || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/$(INSTALL) --quiet --no-index --no-deps torch 2>/dev/null || true
	$(VENV)-$*/bin/$(INSTALL) --quiet --editable '.[$*]' pytest
	touch $@

# This environment sees the packages of .venv, pip too, and adds its own; pip leaves packages outside of its environment as they are.
# NeuroBench without what it needs for its own data sets: of that, torchaudio asks for a torch of its own.
$(VENV)-ecosystem/.installed: $(DEV)
	$(BIN)/python -m venv --clear --without-pip $(VENV)-ecosystem
	$(BIN)/python -c 'import site; print(*site.getsitepackages())' > $$(echo $(VENV)-ecosystem/lib/python*/site-packages)/dev.pth
	$(VENV)-ecosystem/bin/python -m $(INSTALL) --quiet tonic webdataset
	$(VENV)-ecosystem/bin/python -m $(INSTALL) --quiet --no-deps 'neurobench>=2.1'
	touch $@

gpu: $(DEV)
	$(BIN)/python -m pytest -m cuda tests/test_cuda.py --durations 0 $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-snntorch $(VENV)-norse $(VENV)-spikingjelly $(VENV)-ecosystem build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache snn_recon_demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
