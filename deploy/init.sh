#!/bin/sh
# Runs once, as root with CHOWN, FOWNER and DAC_OVERRIDE only: gives the volume's folders to the stages' user, and puts
# the secrets of .env where only the services that need them look.
set -u
volume=/mnt/flashblade
owner=${OWNER:-10001:10001}
umask 077

fail() {
    echo "spearhead init: $1" >&2
    exit 1
}

# private OWNER MODE PATH: nobody else may read it
private() { chown "$1" "$3" && chmod "$2" "$3" || fail "cannot give $3 to $1."; }

# keep NAME FOLDER FILE OWNER: the secret NAME of .env as FOLDER/FILE, or no such file if it is not set
keep() {
    value=$(sed -n "s/^$1=//p" /run/secrets.env) || fail "cannot read the secrets that Compose gave."
    private "$4" 0700 "$2"
    if [ -n "$value" ]; then
        printf %s "$value" >"$2/.new" && private "$4" 0400 "$2/.new" && mv -f "$2/.new" "$2/$3" || fail "cannot write $2/$3."
    else
        rm -f "$2/$3"
    fi
}

folder() {
    if ! { [ -d "$1" ] || mkdir -m 0755 "$1" 2>/dev/null; }; then
        fail "cannot make $1: mount the volume read-write; on NFS export it with no_root_squash, or make the folder on the server and run 'chown $owner' on it there once."
    fi
    [ "$(stat -c %u:%g "$1")" = "$owner" ] || chown $2 "$owner" "$1" 2>/dev/null \
        || fail "cannot give $1 to $owner: on NFS export it with no_root_squash, or run 'chown $2 $owner' on it on the server once."
}

[ -d "$volume" ] || fail "$volume is not mounted: set FLASHBLADE_PATH in .env to a folder of this host."
found=$(stat -f -c %T "$volume")
if [ -n "${FLASHBLADE_FS:-}" ] && [ "$found" != "$FLASHBLADE_FS" ]; then
    fail "the volume is on '$found', not on '$FLASHBLADE_FS' as FLASHBLADE_FS says: mount it at FLASHBLADE_PATH on the host, then start again."
fi
for name in queue metrics models logs raw-data control; do
    folder "$volume/$name" -R
done
folder "$volume" ""
keep TOKEN_KEY /keys/token given.key "$owner"
keep API_TOKEN /keys/api token "$owner"
for name in ALERT_WEBHOOK_URL ALERT_SLACK_URL ALERT_SMTP_PASSWORD; do
    keep "$name" /keys/alerts "$name" 65534:65534 # Alertmanager's user
done
keep GRAFANA_PASSWORD /keys/grafana password 472:0 # Grafana's
echo "spearhead init: $volume ($found) is ready for $owner."
