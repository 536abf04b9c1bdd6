#!/bin/bash
# step: fewer-queries
# fails: too-many
# With ndots:1 the short name, which has one dot, is asked as it is first: the full name is cheap, the short one dearer.
sed -i 's/value: "5"/value: "1"/' "$WORKSPACE/thrifty.yaml"
kubectl apply -f "$WORKSPACE/thrifty.yaml"
kubectl wait --for=condition=Ready pod/thrifty --timeout=20s
