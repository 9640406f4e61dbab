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
# A file, not variables: those would overrule a file that is mounted in its place.
COPY config/container.toml /etc/gateway/gateway.toml
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# Asks the port that is configured, by the file or by the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; from gateway.config.load import load; urlopen(f'http://127.0.0.1:{load(\"/etc/gateway/gateway.toml\").server.port}/healthz', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.toml"]
