# make demo   the whole path on this machine: train, export, generate without torch
# make test   every check
# make site   the page that runs the demo's bundle in a browser (Node)
# They set up what they need, in .venv (with torch) and .venv-runtime (without), and repeat quickly.

PYTHON ?= python3
TRAIN_READY := .venv/.train-ready
DEV_READY := .venv/.dev-ready
RUNTIME_READY := .venv-runtime/.ready
JS_READY := runtime/js/node_modules/.ready
SOURCES := $(shell find trainer export runtime -name '*.py' -o -name py.typed)
PIP := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
BEGUN := $(shell date +%s)

.PHONY: demo test lint fixture site clean

# $(call step,NAME,COMMAND,FILES): run a step of the demo, and note its time and what it made.
define step
@begun=$$(date +%s); $(2) || exit 1; \
printf '  %-9s %4d s  %s\n' $(1) $$(($$(date +%s) - begun)) "$$(du -sh $(3) | awk '{printf "%s (%s)  ", $$2, $$1}')" >> artifacts/demo.txt
endef

demo: $(TRAIN_READY) $(RUNTIME_READY)
	@printf 'step, time, what it made (size):\n  %-9s %4d s  %s\n' setup $$(($$(date +%s) - $(BEGUN))) \
	  "$$(du -sh .venv .venv-runtime | awk '{printf "%s (%s)  ", $$2, $$1}')" > artifacts/demo.txt
	$(call step,train,.venv/bin/lm-train --resume,artifacts/run/best.pt)
	$(call step,export,.venv/bin/lm-export --opset 17 --quantize int8 --force,artifacts/bundle/onnx/*.onnx)
	@! .venv-runtime/bin/python -c 'import torch' 2> /dev/null && echo 'generating where torch is not installed:'
	$(call step,generate,.venv-runtime/bin/lm-generate --seed 1,.venv-runtime)
	@.venv/bin/python -c "import json; s = json.load(open('artifacts/run/summary.json')); \
	  print('valid perplexity {:.1f}; uniform {uniform:.1f}, unigram {unigram:.1f}'.format(s['valid']['perplexity'], **s['baselines']))"
	@cat artifacts/demo.txt
	@echo 'to try it in a browser: .venv/bin/lm-serve'

test: $(DEV_READY) $(RUNTIME_READY) $(if $(shell command -v npm),$(JS_READY)) lint
	.venv/bin/python -m pytest

lint: $(DEV_READY)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/mypy tests/benchmarks

# The bundle in tests/fixtures, made again from data/tiny, and what its readers must find in it.
fixture: $(TRAIN_READY)
	.venv/bin/python tests/make_fixture.py
	.venv/bin/python tests/make_cases.py

# A folder for any web server, with the bundle of artifacts/bundle in a page.
site: $(JS_READY) artifacts/bundle/config.json
	cd runtime/js && npm run --silent site -- ../../artifacts/bundle ../../artifacts/site

artifacts/bundle/config.json:
	$(MAKE) demo

clean:
	rm -rf .venv .venv-runtime runtime/js/node_modules dist artifacts/run artifacts/bundle artifacts/site artifacts/*.txt

# Of the JavaScript runtime; without Node its tests are skipped.
$(JS_READY): runtime/js/package-lock.json
	cd runtime/js && npm ci --ignore-scripts --silent
	@touch $@

$(TRAIN_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) --editable '.[train,serve]'
	@touch $@

$(DEV_READY): $(TRAIN_READY)
	.venv/bin/python $(PIP) --editable '.[dev]'
	@touch $@

# A second environment with the wheel and what it needs, as a user of a bundle has it.
$(RUNTIME_READY): pyproject.toml constraints.txt README.md $(SOURCES)
	$(PYTHON) -m venv .venv-runtime
	rm -rf dist
	.venv-runtime/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	.venv-runtime/bin/python $(PIP) --force-reinstall --no-deps dist/steplm-*.whl
	.venv-runtime/bin/python $(PIP) dist/steplm-*.whl
	@touch $@
