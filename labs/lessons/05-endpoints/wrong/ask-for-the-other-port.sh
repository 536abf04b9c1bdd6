#!/bin/bash
# step: wrong-port
# fails: port
# Changes the port that clients ask for; the pods still listen on 8000.
kubectl -n shop patch service payment --type=json -p '[{"op":"replace","path":"/spec/ports/0/port","value":8000}]'
