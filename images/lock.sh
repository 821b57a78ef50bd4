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

# vLLM's numba is behind the numpy that is tested everywhere else.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
cp constraints.txt "$constraints"

lock() { # TARGET ARGUMENTS...
  echo "  $1"
  uv pip compile --quiet --generate-hashes --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
    --constraint "$constraints" --no-annotate --output-file "$@" > /dev/null
}

lock images/build.txt images/build.in
lock images/generate/requirements.txt pyproject.toml --extra gcs --extra generate
for variant in cpu gpu; do
  if [ $variant = cpu ]; then
    # With the CPU wheels at hand, 2.13.0+cpu counts as newer than 2.13.0.
    export UV_FIND_LINKS=$TORCH_WHEELS
    engine=()
  else
    unset UV_FIND_LINKS
    engine=(--extra vllm)
    grep -v '^numpy==' constraints.txt > "$constraints"
  fi
  # The most demanding set first; what the others share with it has the same versions.
  lock images/eval/requirements-$variant.txt pyproject.toml --extra gcs --extra eval "${engine[@]}"
  lock images/models-$variant.txt pyproject.toml --extra gcs --extra models \
    --constraint images/eval/requirements-$variant.txt
  for stage in train quantize-check; do
    lock images/$stage/requirements-$variant.txt pyproject.toml --extra gcs --extra $stage \
      --constraint images/eval/requirements-$variant.txt \
      --constraint images/models-$variant.txt
  done
done
lock images/generate/requirements-gpu.txt pyproject.toml --extra gcs --extra generate \
  --extra models --extra vllm --constraint images/eval/requirements-gpu.txt \
  --constraint images/models-gpu.txt
