# Image of generate with a teacher of its own (--teacher vllm): make image-generate-gpu, or
#
#   docker build --file images/generate/gpu.Dockerfile --tag raft-generate-gpu:0.1.0 .
#
# As that of eval, but for the name of the stage. VARIANT is gpu: the CPU images have no vLLM.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS code
RUN python3 -m venv /opt/raft
ENV PATH=/opt/raft/bin:$PATH
WORKDIR /source
COPY images/build.txt images/
RUN pip install --no-cache-dir --require-hashes --requirement images/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY pipelines/__init__.py pipelines/__main__.py pipelines/stages.py pipelines/
COPY pipelines/cli/ pipelines/cli/
COPY components/__init__.py components/
COPY components/core/ components/core/
COPY components/report/ components/report/
COPY components/generate/ components/generate/
RUN pip install --no-deps --no-build-isolation --no-cache-dir --prefix /code .

FROM ${BASE_IMAGE}
ENV PATH=/opt/raft/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/raft
# The libraries are gigabytes and rarely change: in layers of their own, below the code. What all
# stages that load a model need comes first, so that their images share it; VARIANT is gpu or cpu.
# PyPI has the GPU wheels of torch, and this page the CPU ones (a mirror or a folder of it will do).
ARG VARIANT=gpu
ARG TORCH_WHEELS=https://download.pytorch.org/whl/cpu/torch/
COPY images/models-${VARIANT}.txt /opt/raft/
RUN pip install --no-cache-dir --no-deps --require-hashes --find-links ${TORCH_WHEELS} \
      --requirement /opt/raft/models-${VARIANT}.txt && pip check
# Triton, which vLLM runs on, compiles the launchers of its kernels when they are first used.
RUN if [ "${VARIANT}" = gpu ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY images/generate/requirements-${VARIANT}.txt /opt/raft/
RUN pip install --no-cache-dir --no-deps --require-hashes --find-links ${TORCH_WHEELS} \
      --requirement /opt/raft/requirements-${VARIANT}.txt && pip check
COPY --from=code /code/ /opt/raft/
# By number, so that Kubernetes can see that it is not root; any other user will do as well. All
# that is written goes to /tmp and to the outputs: the root file system may be read-only.
USER 10001:10001
ENV HOME=/tmp
WORKDIR /tmp
ENTRYPOINT ["raft", "generate"]

ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="raft-generate-gpu" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
