#!/usr/bin/env bash
# The tests, in the project's own environment: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ruff check .
ruff format --check .
python -m pytest "$@"
