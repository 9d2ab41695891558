#!/usr/bin/env bash
# Takes this node out of its cluster before it is taken away: Ray places nothing new here and reports what is lost as
# preempted and not as a fault, and the workers are told to give their shards back.
#
#   leave_node.sh SECONDS     until the node is gone
set -euo pipefail
until_gone_s=${1:?seconds until the node is gone}
workers='^ray::[A-Za-z]+Actor'

read -r address node < <(python -c '
import ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
context = ray.get_runtime_context()
print(context.gcs_address, context.get_node_id())')
ray drain-node --address "$address" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message 'the machine is taken back' --deadline-remaining-seconds "$until_gone_s"
pkill -TERM -f "$workers" || echo 'no worker is here'
# Ten seconds are left for the node itself.
for ((waited_s = 0; waited_s < until_gone_s - 10; waited_s++)); do
    pgrep -f "$workers" >/dev/null || break
    sleep 1
done
echo "left with node $node"
