#!/usr/bin/env bash
# The main job on the tiny machines, from pictures to a rate–accuracy table:
#   bash scripts/quickstart.sh
# What is finished is kept: a second call goes on where the first ended.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python scripts/quickstart.py "$@"
