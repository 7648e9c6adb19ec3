#!/bin/sh
# make bench: prepares the peers in .venv (kept between runs), then runs every benchmark; results in BUILD/bench.
# KILN_BENCH_PYTHON names another Python that has torch. The BLAS kernel choice of the environment is undone, for both sides.
set -eu
build=$1
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE || true
python=${KILN_BENCH_PYTHON:-.venv/bin/python}
if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "preparing the peers in .venv (several GB, once)" >&2
  python3 -m venv .venv
  .venv/bin/pip install -q --upgrade torch numpy
  python=.venv/bin/python
fi
"$python" tests/bench/train_step.py "$build" "$build/bench" "${KILN_BENCH_ROUNDS:-5}"
"$python" tests/bench/seed_peer.py "$build"
