# The example service behind alembic-entrypoint, built from this repository.
# To use it for a service of your own, see entrypoint/.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build

# Both stages have the same Python, so this environment works at the same path in the second.
RUN python -m venv /venv
COPY entrypoint/example/requirements.txt /build/
RUN /venv/bin/pip install --no-cache-dir --requirement /build/requirements.txt
COPY . /build/source
RUN /venv/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /build/wheel /build/source \
    && /venv/bin/pip install --no-cache-dir /build/wheel/*.whl \
    && /venv/bin/pip uninstall --yes --quiet pip

FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="alembic-entrypoint example" \
      org.opencontainers.image.description="A page of notes that starts only when its database is at the revision it needs" \
      org.opencontainers.image.licenses="MIT"

COPY --from=build /venv /venv
COPY entrypoint/example /app
WORKDIR /app

# Bytecode that nobody writes cannot be stale.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0
EXPOSE 8000

# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001

# The exec form: the app becomes PID 1, and gets the signals.
ENTRYPOINT ["alembic-entrypoint", "run", "--"]
CMD ["python", "-m", "notes"]
