#!/bin/sh
# make bench: run.sh BUILD [TABLE...] [--nets A,B] [--peers A,B] [--rounds N] [--threads 1,2]
# Prepares the peers in .venv (kept between runs), then measures the tables, all of them if none is named; results in
# BUILD/bench. KILN_BENCH_PYTHON names another Python that has the peers. The BLAS kernel choice of the environment is
# undone, for both sides.
set -eu
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE || true
python=${KILN_BENCH_PYTHON:-.venv/bin/python}
if ! "$python" -c 'from importlib.util import find_spec as f; import sys
sys.exit(not all(map(f, "torch onnxruntime openvino ncnn onnx onnxscript pnnx numpy".split())))' 2>/dev/null; then
  echo "preparing the peers in .venv (several GB, once)" >&2
  python3 -m venv .venv
  .venv/bin/pip install -q --upgrade torch numpy onnxruntime openvino ncnn pnnx onnx onnxscript onednn
  python=.venv/bin/python
fi
exec "$python" "$(dirname "$0")/bench.py" "$@"
