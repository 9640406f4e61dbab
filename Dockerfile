# The environment is built in one stage; the other has neither compilers nor pip's caches.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "/opt/gateway"]
WORKDIR /src
# The dependencies first: they change less often than the code.
COPY config/requirements.txt config/requirements.txt
RUN ["/opt/gateway/bin/pip", "install", "--require-hashes", "-r", "config/requirements.txt"]
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN ["/opt/gateway/bin/pip", "install", "--no-deps", "--no-build-isolation", "."]

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home gateway \
    && install -d -o gateway -g gateway /data /data/uploads
COPY --from=build /opt/gateway /opt/gateway
# In a container the loopback address would be reachable by nobody.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_SERVER__HOST=0.0.0.0 \
    GATEWAY_SINKS__DISK__ROOT=/data/uploads
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
