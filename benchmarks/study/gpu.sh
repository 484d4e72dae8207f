#!/usr/bin/env bash
# The comparison at equal time on a GPU, in calls of under seven minutes: each computes the cells
# that are missing, the most important first, and ends when its time is up. It leaves cells.tgz and
# report.md in $OUT (default: study-results/).
#
#   bash benchmarks/study/gpu.sh imagenette-160 vit.safetensors         on a machine with an NVIDIA GPU
#   bash benchmarks/study/gpu.sh imagenette-160 vit.safetensors --dry   on any CPU: shows that it works
#
# With the folder of clothing10, nuclei or bccd instead of imagenette-160: the same settings on those.
# To continue on another machine, give the last call's cells.tgz as $CELLS (default: $OUT/cells.tgz).
# Only the dry run was tried: how many calls a GPU needs is not known. Two calls are meant to do for
# imagenette: if an update of ResNet-18 takes 3 ms, 0.1 minutes are as many as 25 minutes of a CPU core.
# $PYTHON needs what `pip install hgkd-edge[train]` installs; $WHEELS as in benchmarks/gpu.sh.
set -euo pipefail
data=$(realpath "$1") teacher=$(realpath "$2") dry=${3:-}
cd "$(dirname "$0")/../.."
out=${OUT:-study-results} python=${PYTHON:-python3} wheels=${WHEELS:-wheels}
[ -z "$dry" ] || out=$out/dry  # its costs are a CPU's
cells=${CELLS:-$out/cells.tgz}
if [ -n "${CELLS:-}" ] && [ ! -f "$CELLS" ]; then
  echo "error: \$CELLS: $CELLS is no file" >&2
  exit 2
fi
end=$((SECONDS + ${LIMIT:-400})) failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
work=$(mktemp -d)  # runs and caches, which need not come back
export HGKD_EDGE_CACHE=$work/cache
mkdir -p "$out"
if [ -d "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
  export PYTHONPATH=$PYTHONPATH:$work/site
fi
[ -f "$cells" ] && tar -xzf "$cells" -C "$work"

pack() {  # whatever happened: each cell cost minutes of a GPU
  (cd "$work" && find . -maxdepth 1 -name '*.json' -print0 | tar -czf cells.tgz --null -T -)
  mv "$work/cells.tgz" "$out/"
  rm -rf "$work"
}
trap pack EXIT

limited() {  # arguments of python: a failure is shown and does not stop the rest
  local left=$((end - SECONDS)) status=0
  [ "$left" -gt 5 ] || return 0
  timeout --kill-after 10 "$left" "$python" "$@" || status=$?
  case $status in
    0) ;;
    124 | 137)  # 137 before the time is up: out of memory
      if [ $((end - SECONDS)) -gt 1 ]; then
        failed=1
      else
        echo "stopped after $SECONDS s: run it again for the rest"
      fi ;;
    *) failed=1 ;;
  esac
}

study() {  # options of `equal_time run`; four cells at once, as one keeps a GPU busy for part of the time
  limited -m benchmarks.study.equal_time run --jobs 4 --data "$data" --teacher "$teacher" --out "$work" "$@"
}

name=$(basename "$data")
both=("dense, embedding" "masked half the time, embedding")
views=("${both[0]}, 16 views" "${both[1]}, 16 views")
base=${name%%[-_.]*}
case $base$dry in
  imagenette--dry)
    study --base imagenette-300 --choose --minutes 0.02 --arms pixels "${both[@]}" ;;
  imagenette)
    study --minutes 0.1 --seeds 0 1 2 --arms "${both[@]}" "${views[@]}"
    study --minutes 0.1 --arms "teacher, class token" teacher scratch pixels dense "${both[1]}, equal updates" "masked nine tenths, embedding"
    study --base imagenette-mobilenet --minutes 0.1 --seeds 0 1 2 --arms "${both[@]}" "${views[@]}"
    study --base imagenette-mobilenet --minutes 0.1 --arms scratch pixels dense
    study --choose --minutes 0.025 0.05 0.4 --arms "${both[@]}"
    study --base imagenette-300 --choose --minutes 0.1 --arms "${both[@]}" ;;
  *--dry)
    echo "error: $data: --dry needs the folder of imagenette" >&2
    exit 2 ;;
  clothing10 | nuclei | bccd)
    study --base "$base-vit-s" --minutes 0.1 --seeds 0 1 2 --arms scratch "${views[@]}"
    if [ "$base" = clothing10 ]; then  # the user's own teacher by MAE and by iBOT, which needs `lightly`
      for objective in mae ibot; do
        [ -f "$work/objective.$objective.json" ] || [ $((end - SECONDS)) -lt 150 ] ||
          limited -m benchmarks.study.objectives --data "$data" --minutes 1.5 --objectives "$objective" --out "$work"
      done
    fi ;;
  *)
    echo "error: $data $dry: expected the folder of imagenette, clothing10, nuclei or bccd, and perhaps --dry" >&2
    exit 2 ;;
esac
"$python" -m benchmarks.study.equal_time report --out "$work" | tee "$out/report.md"
echo "cells: $out/cells.tgz"
exit $failed
