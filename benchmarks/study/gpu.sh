#!/usr/bin/env bash
# The comparison at equal time on a GPU, in calls of under seven minutes: each computes the cells
# that are missing and ends when its time is up. The cells land in $OUT/cells (default: study-results/).
#
#   bash benchmarks/study/gpu.sh imagenette-160 vit.safetensors         on a machine with an NVIDIA GPU
#   bash benchmarks/study/gpu.sh imagenette-160 vit.safetensors --dry   on any CPU: shows that it works
#
# With the folder of clothing10, nuclei or bccd instead of imagenette-160: the same settings on those.
# To continue on another machine, put the cells of the last call into $CELLS (default: study-cells/).
# Only the dry run was tried.
# $PYTHON needs what `pip install hgkd-edge[train]` installs; $WHEELS as in benchmarks/gpu.sh.
set -euo pipefail
data=$(realpath "$1") teacher=$(realpath "$2") dry=${3:-}
cd "$(dirname "$0")/../.."
out=${OUT:-study-results} python=${PYTHON:-python3} wheels=${WHEELS:-wheels} cells=${CELLS:-study-cells}
end=$((SECONDS + ${LIMIT:-400}))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out/cells"
work=$(mktemp -d)  # runs and caches, which need not come back
export HGKD_EDGE_CACHE=$work/cache
if [ -d "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
  export PYTHONPATH=$PYTHONPATH:$work/site
fi
for file in "$cells"/*.json; do [ -f "$file" ] && cp "$file" "$work/"; done

study() {  # options of `equal_time run`
  left=$((end - SECONDS))
  [ "$left" -gt 5 ] || return 0
  timeout "$left" "$python" -m benchmarks.study.equal_time run --data "$data" --teacher "$teacher" \
    --out "$work" "$@" || { [ $? -eq 124 ] && echo "stopped after $SECONDS s: run it again for the rest"; }
  cp "$work"/*.json "$out/cells/"
}

name=$(basename "$data")
both=("dense, embedding" "masked half the time, embedding")
views=("${both[0]}, 16 views" "${both[1]}, 16 views")
base=${name%%[-_.]*}
case $base$dry in
  imagenette--dry)
    study --base imagenette-300 --choose --minutes 0.02 --arms pixels "${both[@]}" ;;
  imagenette)
    study --minutes 1 --seeds 0 --arms teacher scratch pixels dense "${both[@]}" "${both[1]}, equal updates"
    study --minutes 1 --seeds 1 2 --arms "${both[@]}"
    study --base imagenette-mobilenet --minutes 0.5 --seeds 0 1 2 --arms scratch "${both[@]}" "${views[@]}"
    study --choose --minutes 0.25 0.5 2 --arms "${both[@]}"
    study --base imagenette-300 --choose --minutes 0.5 2 --arms "${both[@]}" ;;
  *--dry)
    echo "error: $data: --dry needs the folder of imagenette" >&2
    exit 2 ;;
  clothing10 | nuclei | bccd)
    study --base "$base-vit-s" --minutes 1 --seeds 0 1 2 --arms scratch "${views[@]}"
    if [ "$base" = clothing10 ]; then  # the user's own teacher by MAE and by iBOT, where `lightly` is installed
      for objective in mae ibot; do
        left=$((end - SECONDS))
        if [ "$left" -gt 150 ] && [ ! -f "$out/objective.$objective.json" ]; then
          timeout "$left" "$python" -m benchmarks.study.objectives --data "$data" --minutes 1.5 \
            --objectives "$objective" --out "$out"
        fi
      done
    fi ;;
  *)
    echo "error: $data $dry: expected the folder of imagenette, clothing10, nuclei or bccd, and perhaps --dry" >&2
    exit 2 ;;
esac
"$python" -m benchmarks.study.equal_time report --out "$out/cells"
echo "cells: $out/cells"
