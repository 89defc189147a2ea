# The command medloss. For the CPU:
#   docker build -t medloss .
# for a GPU, with torch's build for CUDA:
#   docker build -t medloss:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# and then
#   docker run --rm -v "$PWD:/work" medloss compare mine.yaml --data-root images --out results
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=pipelines,fast

# Triton and torch.compile call a compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ \
    && rm -rf /var/lib/apt/lists/*

# torch in a layer of its own, which changes of the code leave as it is.
COPY constraints.txt /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt --index-url "${TORCH_INDEX}" torch

COPY pyproject.toml README.md LICENSE /src/
COPY medloss /src/medloss
COPY pipelines /src/pipelines
COPY configs /src/configs
COPY data_manifests /src/data_manifests
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[${EXTRAS}]" \
    && useradd --create-home --uid 1000 medloss

USER 1000
WORKDIR /work
ENTRYPOINT ["medloss"]
