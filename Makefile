# Targets, as `make` lists them: each with what it does behind ##
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
# uv takes the torch that fits the machine, from torch's own index: without a GPU a fifth of the bytes
export UV_TORCH_BACKEND ?= auto

.PHONY: help demo app test lint docs clean

help:
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(DEMO) ## 64 generated CIFAR-10 images from the shipped weights; installs what sampling needs
	cd cifar10 && ../$(PY) simple_gen_test.py

app: $(DEMO) ## a page to play with the weights, on this machine alone; installs what sampling needs
	$(PY) -m common.app

test: $(READY) ## the test suite; installs everything
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## formatting, lint, types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

docs: $(DOCS) ## the documentation site, build/site/index.html; fails at a broken link
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

clean: ## remove .venv
	rm -rf $(VENV)

$(DEMO): requirements-demo.txt
	$(install)

$(READY): requirements.txt
	$(install)

$(DOCS): requirements-docs.txt
	$(install)

# into .venv what the first prerequisite names, by uv where it is there
define install
	@if command -v uv > /dev/null; then \
		echo "uv pip install -r $<"; \
		{ [ -x $(PY) ] || uv venv --quiet --python $(PYTHON) $(VENV); } && \
		{ uv pip install --quiet --python $(PY) -r $< || { echo "again, with the torch of the usual index" && \
			env -u UV_TORCH_BACKEND uv pip install --quiet --python $(PY) -r $<; }; }; \
	else \
		echo "pip install -r $<"; \
		{ [ -x $(PY) ] || $(PYTHON) -m venv $(VENV); } && $(PY) -m pip install --quiet --disable-pip-version-check -r $<; \
	fi
	@touch $@
endef
