#!/bin/bash
# step: refused
# fails: selector
# Gives the pods of tonight the label. Those of the next rollout will not have it.
kubectl -n fastapi label pods -l app=lets-ship-it track=stable
