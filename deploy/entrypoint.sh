#!/bin/sh
# The root file system is read-only: kernels compiled at build go where numba may also write its own.
# Secrets come as files, so that neither `docker inspect` nor a log shows them.
set -eu
if [ -d /opt/numba ]; then
    mkdir -p "$NUMBA_CACHE_DIR"
    cp -R /opt/numba/. "$NUMBA_CACHE_DIR/"
fi
from_file() {
    if [ -s "$2" ]; then
        export "$1=$(cat "$2")"
    fi
}
from_file TOKEN_KEY /var/lib/spearhead/token/given.key
from_file API_TOKEN /var/lib/spearhead/api/token
exec "$@"
