#!/usr/bin/env bash
# Waits for the notice that EC2 gives two minutes before it takes a spot instance back; then the node leaves.
set -euo pipefail
metadata=${METADATA_URL:-http://169.254.169.254}
every_s=${POLL_S:-5}

noticed() {
    local token
    token=$(curl --silent --fail --max-time 2 --request PUT \
        --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") || return 1
    # 404 as long as there is no notice.
    curl --silent --fail --max-time 2 --header "X-aws-ec2-metadata-token: $token" \
        "$metadata/latest/meta-data/spot/instance-action"
}

until noticed; do sleep "$every_s"; done
echo
exec bash "$(dirname "${BASH_SOURCE[0]}")/../leave_node.sh" 110
