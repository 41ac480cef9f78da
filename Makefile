# make demo    draw people, crop, train three heads, submit, score (no photos or GPU needed)
# make test    all tests
# make test-oldest, make test-newest
#              all tests with the oldest versions that the requirements allow, or the newest there are
# make pictures  draw README.md's pictures anew
# make lint    check style and format
# make clean   remove everything these made, the environments included

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-onnx.txt requirements-look.txt requirements-dev.txt
# Two processes of one thread each: on two cores nearly twice as fast as one of two threads.
TEST := -m pytest -n 2 --dist worksteal
export NO_ALBUMENTATIONS_UPDATE := 1
# The demo's crops stay in its folder: not among the user's own.
export MAG_CROP_DIR :=

DEMO := demo
TRAIN := $(BIN)/python train.py --data-dir $(DEMO)/data --output-dir $(DEMO)/runs --overwrite \
	--model efficientnet-lite0 --resize 112 --lr 3e-4 --batch-size 16

.PHONY: demo pictures test test-oldest test-newest lint clean

# Real files, newer than what they were made from: made again only when the requirements change.
$(VENV)/ready: $(REQUIREMENTS) constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -r requirements-dev.txt -c constraints.txt
	touch $@

$(OLDEST)/ready: $(REQUIREMENTS) constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install -r requirements-dev.txt -c constraints-oldest.txt
	touch $@

$(DEMO)/data/train/train.csv: | $(VENV)/ready
	$(BIN)/python -m ETC.sample --output $(DEMO)/data --people 120 --eval-people 60

demo: $(VENV)/ready $(DEMO)/data/train/train.csv
	$(BIN)/python -m data.crop --data-dir $(DEMO)/data
	$(TRAIN) --target mask --epochs 4
	$(TRAIN) --target gender --epochs 4
	$(TRAIN) --target age --epochs 6
	$(BIN)/python test.py --data-dir $(DEMO)/data --runs $(DEMO)/runs \
		--output $(DEMO)/submission.csv --answers $(DEMO)/data/eval/answers.csv
	$(BIN)/python -m ETC.report $(DEMO)/runs/mask_fold0 $(DEMO)/runs/gender_fold0 \
		$(DEMO)/runs/age_fold0
	$(BIN)/python -m ETC.report $(DEMO)/submission.csv --data-dir $(DEMO)/data \
		--answers $(DEMO)/data/eval/answers.csv

# README.md's pictures, from the demo; needs Chromium.
pictures: demo
	$(BIN)/python -m ETC.pictures --demo $(DEMO)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python $(TEST)

test-oldest: $(OLDEST)/ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(TEST)

# Installed anew each time: what is newest changes with no file here.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install -r requirements-dev.txt
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(TEST)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(DEMO) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
