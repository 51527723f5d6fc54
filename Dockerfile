# syntax=docker/dockerfile:1
#
#   docker build -t fewshot .                      CPU, slim (the last stage is the default)
#   docker build -t fewshot:gpu --target gpu .     NVIDIA GPU; run with --gpus all
#
# Both listen on port 8000, as a user without rights, and write nothing but /tmp and, without
# DATABASE_URL, the embedded database in /data.

# --- what serving depends on, without the runtime --------------------------------------------
FROM python:3.11-slim AS dependencies
# pip stays outside the environment that it fills (PIP_PYTHON), so it does not get into the images.
ENV PIP_PYTHON=/opt/fewshot/bin/python PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /opt/fewshot
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# On Linux x86-64 pyproject.toml asks for onnxruntime-gpu, which runs on CPUs as well but is ten
# times the size of onnxruntime. Each image chooses its own below; everything else is read from
# pyproject.toml, so that nothing is declared twice.
RUN python -c "import tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; \
    wanted = project['dependencies'] + extras['postgres'] + extras['otel']; \
    print(*(line for line in wanted if not line.startswith('onnxruntime')), sep='\n')" \
    > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

# --- the project as a wheel ------------------------------------------------------------------
FROM dependencies AS wheel
COPY LICENSE README.md fewshot.py ./
COPY fewshot_client fewshot_client
COPY models_zoo models_zoo
COPY service service
COPY training training
RUN pip wheel --no-deps --wheel-dir /wheels .

# --- the two environments; --no-deps, since the runtime has been chosen ----------------------
FROM dependencies AS cpu-environment
RUN pip install -c constraints.txt onnxruntime
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl

FROM dependencies AS gpu-environment
# The extras of onnxruntime-gpu bring CUDA and cuDNN as wheels: the host needs the driver alone.
# nvidia-ml-py tells /metrics of its memory.
RUN pip install -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]' nvidia-ml-py
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl

# --- what both images share ------------------------------------------------------------------
FROM python:3.11-slim AS runtime
RUN useradd --uid 10001 --no-log-init --no-create-home --shell /usr/sbin/nologin fewshot
ENV PATH=/opt/fewshot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FEWSHOT_HOST=0.0.0.0 \
    FEWSHOT_PORT=8000 \
    FEWSHOT_DATA_DIR=/data
RUN install -d -o 10001 /data
VOLUME /data
WORKDIR /opt/fewshot
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['FEWSHOT_PORT']), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["fewshot"]
CMD ["serve"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-environment /opt/fewshot /opt/fewshot

FROM runtime AS cpu
COPY --from=cpu-environment /opt/fewshot /opt/fewshot
