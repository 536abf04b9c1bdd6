#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_call() {
    k8snet-lab exec default/client -- curl -sS -o /dev/null http://lets-ship-it.fastapi:8000/
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve first-sight
