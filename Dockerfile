# The command line in a container, for a CPU (the default) or a CUDA device:
#   docker build -t convattn --build-arg TORCH_INDEX=URL .   # URL of PyTorch's CPU wheels; without: those with CUDA
#   docker build -t convattn:cuda --target cuda .
#   docker run --rm -v "$PWD:/work" convattn explain tf_efficientnet_lite0 photo.jpg
#   docker run --rm --gpus all -v "$PWD:/work" convattn:cuda finetune images
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY --from=wheel /wheels /wheels
WORKDIR /work

FROM base AS cuda
RUN pip install torch torchvision \
  && pip install "$(ls /wheels/*.whl)[all]" && rm -r /wheels
RUN useradd --create-home convattn
USER convattn
ENTRYPOINT ["convattn"]
CMD ["--help"]

FROM base AS cpu
ARG TORCH_INDEX
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
  && pip install "$(ls /wheels/*.whl)[all]" && rm -r /wheels
RUN useradd --create-home convattn
USER convattn
ENTRYPOINT ["convattn"]
CMD ["--help"]
