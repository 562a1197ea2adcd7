# `make demo` and `make test` do all their own set-up in .venv; PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo app test lint docs release clean

demo: $(STAMP)
	$(BIN)/brickwork demo --output demo.png --overwrite

app: $(STAMP)
	$(BIN)/brickwork app

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

# Builds dist/ from what is committed, and draws a picture from the wheel in an environment of its own; uploads nothing.
release: $(STAMP)
	git diff --quiet HEAD || { echo "error: commit first; a release is built from what is committed."; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	rm -rf build/release dist
	mkdir -p build/release/source
	git archive HEAD | tar -x -C build/release/source
	$(BIN)/python -m build --outdir dist build/release/source
	$(BIN)/python -m twine check --strict dist/*
	test -z "$$(find dist -size +48M)" || { echo "error: a file of dist/ is above 48 MB"; exit 1; }
	$(PYTHON) -m venv build/release/venv
	build/release/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/release && venv/bin/brickwork demo --images 1 --steps 2 --output demo.png
	@echo "dist/ is ready: $(BIN)/python -m twine upload dist/*"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else 'Python 3.11 to 3.13 is needed, this is %s; set PYTHON=…' % sys.version.split()[0])"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $(STAMP)

clean:
	rm -rf .venv build dist *.egg-info
