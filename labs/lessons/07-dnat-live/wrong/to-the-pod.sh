#!/bin/bash
# step: conntrack
# fails: no-entry
# Opens a connection to the server itself: nothing is translated.
server=$(kubectl get pod server -o jsonpath='{.status.podIP}')
read -r _ < <(setsid k8snet-lab exec default/client -- \
    bash -c "exec 3<>/dev/tcp/$server/8000; echo open; exec sleep 10" </dev/null 2>/dev/null)
