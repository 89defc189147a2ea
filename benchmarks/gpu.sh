#!/usr/bin/env bash
# Checks and measures the losses on this machine's GPU, in at most 8 minutes, and writes docs/benchmarks/losses/gpu.md
# and gpu.json. It needs Python with torch for CUDA, MONAI, triton, numpy and scipy, and nothing else.
#
#     benchmarks/gpu.sh                    run it again to resume: finished steps are not repeated
#     benchmarks/gpu.sh --only graphs      one step
#     benchmarks/gpu.sh --dry              everything tiny, on the CPU, by Triton's interpreter
#
# PYTHON names another interpreter; --help lists the options.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
