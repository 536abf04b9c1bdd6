#!/bin/bash
# step: refused
# fails: address
# Deletes the Service and has one made: the name is the same, the address is not.
kubectl -n fastapi delete service lets-ship-it
kubectl -n fastapi expose deployment lets-ship-it --port=8000 --target-port=8000
