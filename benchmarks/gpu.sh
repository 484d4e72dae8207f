#!/usr/bin/env bash
# What only a GPU can show, in under eight minutes: tests/test_gpu.py, then every measurement of
# docs/sparse.md. Writes $OUT/gpu.json (default: gpu-results/).
#
#   bash benchmarks/gpu.sh           on a machine with an NVIDIA GPU
#   bash benchmarks/gpu.sh --dry     on any CPU, small: shows that the script works
#
# Needs nothing but this checkout and a Python with PyTorch ($PYTHON, default python3). What that
# Python lacks is installed from a folder of wheels ($WHEELS, default wheels/), without a network:
#   pip download --no-deps -d wheels pydantic pydantic-core ...
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results} python=${PYTHON:-python3} wheels=${WHEELS:-wheels}
mkdir -p "$out"
rm -f "$out/gpu.json" "$out/tests.xml"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

if [ -d "$wheels" ]; then
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" - <<'PY'
import importlib.util, sys
needed = "torch torchvision timm accelerate safetensors typer rich pydantic yaml numpy PIL pytest pytest_timeout"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}\nhint: put their wheels into wheels/")
PY

timeout 120 "$python" -m pytest tests/test_gpu.py -q --junitxml "$out/tests.xml" || true
tests=(); [ -f "$out/tests.xml" ] && tests=(--tests "$out/tests.xml")
left=$((450 - SECONDS))  # of eight minutes; every part has a limit, and what is done is in the file
timeout --kill-after 5 $((left + 15)) "$python" -m benchmarks.gpu --out "$out/gpu.json" \
  --seconds "$left" "${tests[@]}" "$@" || [ -f "$out/gpu.json" ]
echo "written: $out/gpu.json; into the docs: $python -m benchmarks.gpu.table $out/gpu.json"
