#!/bin/bash
# step: agents
# fails: wrong-answer
# The address by which the nodes know each other is not the one that a pod sees.
k8snet-lab answer --later 172.18.0.3
