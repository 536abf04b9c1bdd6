#!/bin/bash
# step: no-match
# fails: selector
# Gives the pods the label that was misspelled: calls work, but these pods belong to no Deployment any more.
kubectl -n shop label pods -l app=cart app=crat --overwrite
sleep 1
