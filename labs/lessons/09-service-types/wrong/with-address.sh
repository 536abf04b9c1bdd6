#!/bin/bash
# step: each
# fails: headless
# Applies the file as it is.
kubectl apply -f "$WORKSPACE/web-each.yaml"
