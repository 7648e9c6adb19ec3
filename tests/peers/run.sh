#!/bin/sh
# make peers-test: compares Kiln with PaddlePaddle 2.6.2, which is kept in .venv/paddle between runs: operators one by one,
# what is random, training programs of many kinds that PaddlePaddle wrote, programs that Kiln wrote, files in every form, the image models of
# paddle.vision, other deep or recurrent networks, and PP-OCR.
# KILN_PEERS_PYTHON names another Python that has paddlepaddle.
set -eu
build=$1
python=${KILN_PEERS_PYTHON:-.venv/paddle/bin/python}
if ! "$python" -c 'import paddle' 2>/dev/null; then
  echo "preparing PaddlePaddle in .venv/paddle (700 MB, once)" >&2
  python3 -m venv .venv/paddle
  .venv/paddle/bin/pip install -q paddlepaddle==2.6.2 'numpy<2' setuptools
  python=.venv/paddle/bin/python
fi
rc=0
for test in ops distribution train kinds back files models infer exports deep ocr; do
  "$python" "tests/peers/$test.py" "$build" || rc=1
done
exit $rc
