#!/usr/bin/env bash
# Import, in each image, the libraries that it is there for; say versions and sizes. Build first
# (the GPU images are 6 GB and more, so CI does without this):
#
#   make images && images/check.sh              # or: make images VARIANT=cpu && images/check.sh cpu
set -euo pipefail
cd "$(dirname "$0")/.."
variant=${1:-gpu}
tag=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
if [ "$variant" != gpu ]; then tag=$tag-$variant; fi

models="torch transformers peft accelerate bitsandbytes google.cloud.storage"
declare -A libraries=(
  [generate]="aiohttp semantic_text_splitter sentencex google.cloud.storage"
  [train]="$models datasets trl"
  [quantize-check]="$models"
  [eval]="$models lm_eval jinja2"
)
stages="generate train quantize-check eval"
if [ "$variant" = gpu ]; then
  libraries[eval]+=" vllm"
  libraries[generate-gpu]="${libraries[generate]} $models vllm"
  stages+=" generate-gpu"
fi

# One interpreter for all: what loads alone but not beside the others would fail the stage too.
read -r -d '' try << 'EOF' || true
import importlib, sys
failed = False
for name in sys.argv[1:]:
    try:
        said = getattr(importlib.import_module(name), "__version__", "imported")
    except Exception as error:
        failed, said = True, f"FAILED: {type(error).__name__}: {error}"
    print(f"  {name} {said}", flush=True)
sys.exit(failed)
EOF

failed=0
for stage in $stages; do
  image=raft-$stage:$tag
  if ! size=$(docker image inspect --format '{{.Size}}' "$image"); then failed=1; continue; fi
  echo "$image  $((size / 1000000)) MB"
  # shellcheck disable=SC2086 (the libraries are words)
  docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --entrypoint python \
    "$image" -c "$try" ${libraries[$stage]} || failed=1
done
exit $failed
