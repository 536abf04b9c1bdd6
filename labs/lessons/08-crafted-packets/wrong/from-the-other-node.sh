#!/bin/bash
# step: sixty
# fails: few
# Sends from node2: its own rules choose, and count.
k8snet-lab exec node2 -- k8snet-trace probe fastapi/lets-ship-it:8000 --count 60
