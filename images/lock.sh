#!/usr/bin/env bash
# Compile every lock in images/ again, for Python 3.11 on x86-64 Linux; what is pinned stays unless
# pyproject.toml or constraints.txt asks for something else:
#
#   make lock
#
# TORCH_WHEELS is where the CPU wheels of torch lie: a page of links, or a folder.
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH_WHEELS=${TORCH_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}

lock() { # TARGET ARGUMENTS...
  echo "  $1"
  uv pip compile --quiet --generate-hashes --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
    --constraint constraints.txt --output-file "$@" > /dev/null
}

lock images/build.txt images/build.in
lock images/generate/requirements.txt pyproject.toml --extra gcs --extra generate
for variant in gpu cpu; do
  # With the CPU wheels at hand, 2.13.0+cpu counts as newer than 2.13.0.
  if [ $variant = cpu ]; then export UV_FIND_LINKS=$TORCH_WHEELS; fi
  lock images/models-$variant.txt pyproject.toml --extra gcs --extra models
  for stage in train quantize-check eval; do
    lock images/$stage/requirements-$variant.txt pyproject.toml --extra gcs --extra $stage \
      --constraint images/models-$variant.txt
  done
done
