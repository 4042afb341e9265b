# Jouleway beside its engine. Two stages to choose from, made by the same `make setup` as everywhere else:
#   docker build --target cpu -t jouleway:cpu .        vLLM's CPU build, modelled joules (grade D) or RAPL (C)
#   docker build --target gpu -t jouleway:gpu .        vLLM's CUDA build; run with --gpus all
# Run:  docker run --rm --shm-size=2g jouleway:cpu demo
# The base is named by tag, not by digest: pin it (python:3.11-slim-bookworm@sha256:…) in a registry of your own.
FROM python:3.11-slim-bookworm AS base
# gcc: torch and Triton compile kernels at run time. tini: reaps what Ray and the engine leave behind.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make gcc g++ libc6-dev libgomp1 libnuma1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 jouleway \
    && install -d -o jouleway -g jouleway /opt/jouleway
USER jouleway
WORKDIR /opt/jouleway
COPY --chown=jouleway:jouleway . .
ENV RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1
LABEL org.opencontainers.image.title="jouleway" org.opencontainers.image.licenses="Apache-2.0"

FROM base AS cpu
RUN JOULEWAY_LOCK=cpu make setup
ENTRYPOINT ["tini", "--", "/opt/jouleway/.venv/bin/jouleway"]
CMD ["--help"]

FROM base AS gpu
# No GPU is visible while an image is built: the lock is named. The driver comes from the host by the container toolkit.
RUN JOULEWAY_LOCK=cuda make setup
ENV JOULEWAY_LOCK=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["tini", "--", "/opt/jouleway/.venv/bin/jouleway"]
CMD ["--help"]
