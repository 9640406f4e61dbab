# The environment is built in one stage; what is run has neither compilers nor what only builds: it takes the result.
# A minor version and a release of Debian, no patch of either: building it anew is how security updates come in.
FROM python:3.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# Without pip in it: what runs installs nothing.
RUN ["python", "-m", "venv", "--without-pip", "/opt/gateway"]
WORKDIR /src
# The dependencies first: they change less often than the code.
COPY config/requirements.txt config/requirements.txt
RUN ["python", "-m", "pip", "--python", "/opt/gateway/bin/python", "install", "--require-hashes", "-r", "config/requirements.txt"]
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN python -m pip --python /opt/gateway/bin/python install --no-deps --no-build-isolation . \
    && python -m pip --python /opt/gateway/bin/python uninstall --yes flit-core

FROM python:3.13-slim-bookworm
# Who builds says which state of the code this is: docker build --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD)
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="multipart-relay-gateway" \
      org.opencontainers.image.description="A streaming multipart relay gateway: uploads go to disk and to other APIs, whole or not at all" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# A number that is nobody's on common hosts, so that what is written to a volume belongs to no user there. The library's
# bytecode is compiled here, since the image leaves it out and a root that is read-only keeps none: without it each
# start, the health check's too, would compile anew.
RUN groupadd --system --gid 10001 gateway \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin gateway \
    && install -d -o 10001 -g 10001 /data /data/uploads \
    && python -m compileall -q -j 0 -x '/(test|idlelib|lib2to3|ensurepip|turtledemo|site-packages)/' "$(python -c "import sysconfig; print(sysconfig.get_path('stdlib'))")"
COPY --from=build /opt/gateway /opt/gateway
# A file, not variables: those would overrule a file that is mounted in its place.
COPY config/container.toml /etc/gateway/gateway.toml
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# Asks where the configuration says that it listens, by the file or by the environment. It starts a Python, which is a
# second of a core: not oftener than it has to be.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["gateway", "check", "--alive", "--config", "/etc/gateway/gateway.toml"]
# The form of a list: the gateway is the process with the number 1, and gets the signals itself.
STOPSIGNAL SIGTERM
ENTRYPOINT ["gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.toml"]
