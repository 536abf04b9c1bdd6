#!/bin/bash
# step: sticky
# fails: few
# Sets the field, and sends nothing.
kubectl -n fastapi patch service lets-ship-it -p '{"spec": {"sessionAffinity": "ClientIP"}}'
sleep 1
