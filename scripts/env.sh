# Sourced by the other scripts: makes .venv at the repository's root, once, and activates it.
# The stamp holds the requirements that were installed, so a changed list installs again.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
if ! cmp -s requirements.txt .venv/installed.txt 2>/dev/null; then
  "${PYTHON:-python3.11}" -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade "pip>=24"
  .venv/bin/python -m pip install --progress-bar on -r requirements.txt
  cp requirements.txt .venv/installed.txt
fi
source .venv/bin/activate
