#!/bin/bash
# step: alias
# fails: no-answer
# Points to a short name, to which nobody adds the cluster's domain.
kubectl -n shop create service externalname docs --external-name lets-ship-it.fastapi
