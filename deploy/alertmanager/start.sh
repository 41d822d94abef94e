#!/bin/sh
# Writes Alertmanager's configuration from the environment, then becomes Alertmanager (or any other command given).
# Without a receiver, alerts are kept and shown, and sent to nobody. Nothing here prints a value.
#
# ALERT_WEBHOOK_URL                          POST to this URL
# ALERT_SLACK_URL, ALERT_SLACK_CHANNEL       a Slack incoming webhook
# ALERT_EMAIL_TO, ALERT_EMAIL_FROM, ALERT_SMTP_HOST (host:port), ALERT_SMTP_USER, ALERT_SMTP_PASSWORD
# ALERT_MIN_SEVERITY                         warning (the default), critical or info: what is sent
#
# The secrets among them (the URLs and the password) come as files of their names in /run/spearhead.
set -eu
umask 077
config=${ALERTMANAGER_CONFIG:-/tmp/alertmanager.yml}
secrets=${SECRETS_FOLDER:-/run/spearhead}

refuse() {
    echo "spearhead alertmanager: $1" >&2
    exit 2
}

# A setting: its variable, or else the first line of its secret's file. An unreadable file is refused, not passed over.
setting() {
    eval "value=\${$1:-}"
    file=$secrets/$1
    if [ -z "$value" ] && [ -s "$file" ]; then
        [ -r "$file" ] || refuse "$1: its file can't be read by uid $(id -u)"
        IFS= read -r value <"$file" || :
    fi
}

# As a YAML scalar in single quotes: a quote is doubled, a line break can't be said.
quoted() {
    case $2 in *"
"*) refuse "$1 must be one line" ;; esac
    printf "'%s'" "$(printf '%s' "$2" | sed "s/'/''/g")"
}

url() {
    case $2 in http://?* | https://?*) quoted "$1" "$2" ;; *) refuse "$1 must begin with http:// or https://" ;; esac
}

receivers() {
    setting ALERT_WEBHOOK_URL
    if [ -n "$value" ]; then
        link=$(url ALERT_WEBHOOK_URL "$value")
        printf '    webhook_configs:\n      - {url: %s, send_resolved: true}\n' "$link"
    fi
    setting ALERT_SLACK_URL
    if [ -n "$value" ]; then
        link=$(url ALERT_SLACK_URL "$value")
        setting ALERT_SLACK_CHANNEL
        cat <<X
    slack_configs:
      - api_url: $link
        channel: $(quoted ALERT_SLACK_CHANNEL "${value:-#alerts}")
        send_resolved: true
        title: '{{ .Status | toUpper }} {{ .CommonLabels.severity }}: {{ .CommonLabels.alertname }}'
        text: '{{ range .Alerts }}{{ .Annotations.summary }}. {{ .Annotations.description }} ({{ .Annotations.runbook_url }}) {{ end }}'
X
    fi
    setting ALERT_EMAIL_TO
    if [ -n "$value" ]; then
        to=$(quoted ALERT_EMAIL_TO "$value")
        setting ALERT_EMAIL_FROM
        [ -n "$value" ] || refuse "ALERT_EMAIL_FROM is needed with ALERT_EMAIL_TO"
        from=$(quoted ALERT_EMAIL_FROM "$value")
        setting ALERT_SMTP_HOST
        case $value in ?*:[0-9]*) ;; *) refuse "ALERT_SMTP_HOST must be host:port" ;; esac
        printf '    email_configs:\n      - to: %s\n        from: %s\n        smarthost: %s\n        send_resolved: true\n' \
            "$to" "$from" "$(quoted ALERT_SMTP_HOST "$value")"
        setting ALERT_SMTP_USER
        [ -z "$value" ] || printf '        auth_username: %s\n' "$(quoted ALERT_SMTP_USER "$value")"
        setting ALERT_SMTP_PASSWORD
        [ -z "$value" ] || printf '        auth_password: %s\n' "$(quoted ALERT_SMTP_PASSWORD "$value")"
    fi
}

case ${ALERT_MIN_SEVERITY:-warning} in
    info) sent='info|warning|critical' ;;
    warning) sent='warning|critical' ;;
    critical) sent='critical' ;;
    *) refuse "ALERT_MIN_SEVERITY must be info, warning or critical" ;;
esac

made=$(receivers)
{
    cat <<X
route:
  receiver: none
  group_by: [alertname]
  group_wait: 15s
  group_interval: 2m
  repeat_interval: 4h
  routes:
    - receiver: operators
      matchers: ['severity=~"$sent"']
      routes:
        - receiver: operators
          matchers: ['severity="critical"']
          repeat_interval: 1h
inhibit_rules:
  # Without the exporter or the volume nothing else can be known; what was known is no news.
  - source_matchers: ['alertname=~"SpearheadExporterDown|SpearheadVolumeUnreadable"']
    target_matchers: ['alertname=~"Spearhead.+"', 'alertname!~"SpearheadExporterDown|SpearheadVolumeUnreadable|SpearheadRulesFailing|SpearheadAlertsNotDelivered"']
  # A full disk, a missing stage or model explains what queues up before it.
  - source_matchers: ['alertname=~"SpearheadDiskLow|SpearheadStageDown|SpearheadNoModel"']
    target_matchers: ['alertname=~"SpearheadBackPressure|SpearheadBacklog.+|SpearheadLatency.+|SpearheadNoTraffic|SpearheadLedgerStale"']
  - source_matchers: ['alertname="SpearheadLatencyBudgetBurnFast"']
    target_matchers: ['alertname="SpearheadLatencyBudgetBurnSlow"']
receivers:
  - name: none
  - name: operators
X
    printf '%s\n' "$made"
} >"$config.new"
mv "$config.new" "$config"
exec "$@"
