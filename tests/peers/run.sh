#!/bin/sh
# make peers-test: compares Kiln with PaddlePaddle 2.6.2, which is kept in .venv/paddle between runs.
# usage: run.sh BUILD [PART ...] [options]: the parts and options are those of run.py, all parts if none is named.
# KILN_PEERS_PYTHON names another Python that has paddlepaddle.
set -eu
python=${KILN_PEERS_PYTHON:-.venv/paddle/bin/python}
if ! "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("paddle"))' 2>/dev/null; then
  echo "preparing PaddlePaddle in .venv/paddle (700 MB, once)" >&2
  python3 -m venv .venv/paddle
  .venv/paddle/bin/pip install -q paddlepaddle==2.6.2 'numpy<2' setuptools
  python=.venv/paddle/bin/python
fi
exec "$python" tests/peers/run.py "$@"
