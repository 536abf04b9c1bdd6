#!/bin/bash
# step: two-ports
# fails: target-port
# Sends all calls to port 9000: now those to the old pods fail.
kubectl -n shop patch service blog -p '{"spec":{"ports":[{"port":80,"targetPort":9000}]}}'
