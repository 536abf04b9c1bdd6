#!/bin/bash
# step: capture
# fails: wrong-answer
# What the client sent to, not what arrives.
k8snet-lab answer --later 10.96.80.80:80
