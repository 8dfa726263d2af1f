#!/usr/bin/env bash
# Runs what needs a GPU, within ten minutes: the tests marked cuda, and the GPU part of the scale benchmark.
# Its json go to benchmarks/results/scale/, and the page is written anew from them.
#
#   benchmarks/scale/gpu.sh                      on the GPU
#   DEVICE=cpu benchmarks/scale/gpu.sh           tries the script without one, on small programs, in a temporary folder
#   PYTHON=python3 benchmarks/scale/gpu.sh       another interpreter than that of .venv
set -euo pipefail
cd "$(dirname "$0")/../.."
export DEVICE="${DEVICE:-cuda}"
PYTHON="$(command -v "${PYTHON:-.venv/bin/python}")"
case "$PYTHON" in /*) ;; *) PYTHON="$PWD/$PYTHON" ;; esac
"$PYTHON" -c 'import os, sys, torch; os.environ["DEVICE"] == "cpu" or torch.cuda.is_available() or sys.exit("no GPU for torch")'
RESULTS="$PWD/benchmarks/results/scale"
PART=(--part gpu --device "$DEVICE" --limit 60)
if [ "$DEVICE" = cpu ]; then
    RESULTS="$(mktemp -d)"
    PART+=(--shrink 50)
fi

# A failed test is a result too: it is kept, and ends the script with its status after the benchmark.
status=0
printed="$(timeout 270 "$PYTHON" -m pytest tests/test_cuda.py -m cuda -q -p no:cacheprovider 2>&1)" || status=$?
echo "$printed" | tail -n 15
mkdir -p "$RESULTS"
printf '{"device": "%s", "status": %d, "tests": "%s", "date": "%s"}\n' \
    "$DEVICE" "$status" "$(echo "$printed" | tail -n 1 | tr -d '"\\=')" "$(date +%F)" > "$RESULTS/gpu_tests.json"

(cd benchmarks && timeout 300 "$PYTHON" -m scale "${PART[@]}" --results "$RESULTS")
if [ "$DEVICE" != cpu ]; then
    (cd benchmarks && "$PYTHON" -m scale.render)
fi
ls "$RESULTS"
exit "$status"
