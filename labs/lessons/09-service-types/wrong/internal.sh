#!/bin/bash
# step: local
# fails: different
# Sets the policy for calls from pods.
kubectl -n shop patch service web -p '{"spec": {"internalTrafficPolicy": "Local"}}'
