#!/bin/bash
# step: whom-a-pod-asks
# fails: wrong-answer
# Gives the address of the Service, which no pod has.
k8snet-lab answer --later 10.96.0.10
