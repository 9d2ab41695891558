#!/usr/bin/env bash
# Waits for the notice that EC2 gives two minutes before it takes a spot instance back. Then the node is drained: Ray
# places nothing new on it, brings another one, and reports what is lost here as preempted and not as a fault.
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
node=$(python -c 'import ray; ray.init("auto", logging_level="ERROR"); print(ray.get_runtime_context().get_node_id())')
ray drain-node --address "$RAY_HEAD_IP:6379" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message 'the spot instance is taken back' --deadline-remaining-seconds 110
echo "drained $node"
