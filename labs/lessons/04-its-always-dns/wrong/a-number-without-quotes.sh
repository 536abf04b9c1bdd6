#!/bin/bash
# step: fewer-queries
# fails: missing
# The value of an option is text: the API refuses a number, and there is no pod.
sed -i 's/value: "5"/value: 2/' "$WORKSPACE/thrifty.yaml"
! kubectl apply -f "$WORKSPACE/thrifty.yaml"
