#!/usr/bin/env bash
# The tests, in the project's own environment: bash scripts/test.sh [pytest arguments]
# One process a core, one thread a process.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ruff check .
ruff format --check .
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" python -m pytest -n "$(env -u OMP_NUM_THREADS nproc)" "$@"
