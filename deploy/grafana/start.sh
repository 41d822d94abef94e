#!/bin/sh
# Boards can be seen without logging in. For what needs a login (silences), the password of `admin` is the secret
# GRAFANA_PASSWORD or, where there is none, made once: docker compose exec grafana cat /var/lib/grafana/admin-password
set -eu
umask 077
data=${GF_PATHS_DATA:-/var/lib/grafana}
given=${SECRETS_FOLDER:-/run/spearhead}/password
if [ -s "$given" ]; then
    password=$given
else
    password=$data/admin-password
    [ -s "$password" ] || {
        head -c 18 /dev/urandom | base64 >"$password.new"
        mv "$password.new" "$password"
    }
fi
export GF_SECURITY_ADMIN_PASSWORD__FILE="$password"
exec "$@"
