# syntax=docker/dockerfile:1
# For a processor:  docker build -t brickwork .
# For NVIDIA GPUs:  docker build -t brickwork:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# To draw:          docker run --rm -v "$PWD:/home/brickwork/work" brickwork generate lego-avatars-64 --count 4
# On a GPU:         docker run --rm --gpus all -v "$PWD:/home/brickwork/work" brickwork:gpu train my-pictures
FROM python:3.12-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/brickwork
COPY constraints.txt pyproject.toml README.md LICENSE ./
# torch first, from the index of its platform, in the version of constraints.txt; the layer lasts until a version changes.
# hadolint ignore=DL3013
RUN TORCH="$(grep '^torch==' constraints.txt)" && pip install --index-url "$TORCH_INDEX" "$TORCH"
COPY src src
COPY gen gen
COPY adapters adapters
COPY pipelines pipelines
COPY eval eval
COPY training training
RUN pip install --constraint constraints.txt '.[report]' \
    && useradd --create-home --uid 1000 brickwork \
    && install -d -o brickwork /home/brickwork/work
USER 1000
WORKDIR /home/brickwork/work
ENTRYPOINT ["brickwork"]
CMD ["--help"]
