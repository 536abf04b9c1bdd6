#!/bin/bash
# step: owners
# fails: wrong-answer
# The Deployment owns the ReplicaSet, not the pods.
k8snet-lab answer --later web
