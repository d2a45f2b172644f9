#!/usr/bin/env bash
# What a newcomer gets without constraints: the newest versions resolve for each Python. A registry that does
# not answer is said and skipped; versions that exclude each other are a failure.
#
#     bash .ci/newest.sh FOLDER      # FOLDER is for files that can be deleted
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1/newest
pythons=(3.11 3.12 3.13)
export UV_CACHE_DIR=${UV_CACHE_DIR:-$work/cache} UV_PYTHON_DOWNLOADS=never

skip() {
  echo "skipped: $*"
  exit 0
}

# Runs uv; the versions' own fault ends the script with an error, any other with a skip.
uv() {
  if "$work/uv/bin/uv" "$@" >"$work/said" 2>&1; then return; fi
  tail -n 20 "$work/said"
  if grep -q "No solution found" "$work/said" && ! grep -q "not found in the package registry" "$work/said"; then
    exit 1
  fi
  skip "uv cannot work here."
}

mkdir -p "$work"
python3.11 -m venv "$work/uv"
"$work/uv/bin/python" -m pip install --quiet uv || skip "there is no uv."
for version in "${pythons[@]}"; do
  uv pip compile --quiet --python-version "$version" --extra ifeval --extra quantized --extra ray \
    --output-file "$work/$version.txt" pyproject.toml
  echo "Python $version: $(grep -E '^(torch|transformers|trl|peft|lm-eval|optuna)==' "$work/$version.txt" | xargs)"
done
rm -rf "$work"
