# Two images: `serve`, without PyTorch, and `train`, with it. docs/containers.md describes them and how to run them.
#
#   docker build --target serve --tag tlcli-serve .
#   docker build --target serve --build-arg CUDA=0 --tag tlcli-serve:cpu .
#   docker build --target train --tag tlcli-train .

# Any image with Python 3.11 to 3.14 and its venv module. NAME@sha256:... is the same image each time.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.16-slim-bookworm

# pip is in an environment of its own, and so in no image. Pass your own configuration (an index, a certificate) as the secrets pip.conf and pip-ca;
# it is in no layer either.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv && mkdir /opt/nvidia
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/

# The project itself: the layer that changes.
FROM build AS project
COPY README.md LICENSE ./
COPY exports exports
COPY service service
COPY tlcli tlcli
COPY training training
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip-ca \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --target /opt/tlcli .

# CUDA=0 leaves CUDA out, for a small image that computes on a CPU alone. With CUDA, libraries that no graph here uses are removed again: cuFFT, which
# ONNX Runtime loads for Fourier transforms, and nvJitLink, which only cuFFT needs; also files that only compilers read. Packages' own tests are removed
# from both.
FROM build AS serve-packages
ARG CUDA=1
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip-ca \
    if [ "$CUDA" = 0 ]; then extras="--cpu otel"; else extras="gpu otel"; fi \
    && python3 deploy/requirements.py $extras > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --constraint constraints.txt --requirement requirements.txt \
    && packages="$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && find "$packages" -type d -name tests -prune -exec rm -rf {} + \
    && if [ -d "$packages/nvidia" ]; then \
        /opt/pip/bin/pip --python /opt/venv/bin/python uninstall --quiet --yes nvidia-cufft nvidia-nvjitlink \
        && rm -f "$packages"/onnxruntime/capi/libonnxruntime_providers_tensorrt.so \
        && find "$packages/nvidia" \( -name include -o -name '*.a' \) -prune -exec rm -rf {} + \
        && rmdir /opt/nvidia && mv "$packages/nvidia" /opt/nvidia && ln -s /opt/nvidia "$packages/nvidia"; \
    fi

FROM build AS train-packages
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip-ca \
    python3 deploy/requirements.py gpu otel tensorboard train > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --constraint constraints.txt --requirement requirements.txt

# Common to both: an unprivileged user who owns no file in the image.
FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 tlcli && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin tlcli
ENV PATH=/opt/tlcli/bin:/opt/venv/bin:$PATH PYTHONPATH=/opt/tlcli PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility CUDA_CACHE_PATH=/tmp/cuda
ENTRYPOINT ["tlcli"]

FROM base AS train
COPY --from=train-packages /opt/venv /opt/venv
COPY --from=project /opt/tlcli /opt/tlcli
# data/, models/ and runs/ are mounted below /srv; /cache is for files that can be downloaded again. Any user may write there.
RUN mkdir -p /srv /cache && chmod 1777 /srv /cache
ENV HOME=/tmp USER=tlcli TLCLI_DATA=/cache/data TLCLI_CACHE=/cache/tlcli HF_HOME=/cache/huggingface TORCH_HOME=/cache/torch MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /srv
USER 10001:10001
CMD ["--help"]

FROM base AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY --from=serve-packages /opt/nvidia /opt/nvidia
COPY --from=project /opt/tlcli /opt/tlcli
# It listens beyond the container, so it does not start without TLS or TLCLI_SERVE_INSECURE.
ENV TLCLI_SERVE_HOST=0.0.0.0 TLCLI_SERVE_MODELS=/models
WORKDIR /models
USER 10001:10001
EXPOSE 8001
# TLCLI_HEALTH_PORT, TLCLI_HEALTH_TLS_CA and others adapt the health check to other settings.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["tlcli", "health"]
CMD ["serve"]
