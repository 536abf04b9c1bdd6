#!/bin/bash
# step: still-refused
# fails: no-answer
# A second Service beside the broken one.
kubectl -n fastapi expose deployment lets-ship-it --name=lets-ship-it-2 --port=8000
