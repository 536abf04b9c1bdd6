#!/bin/bash
# step: maps
# fails: wrong-answer
# Answers with the bytes of the ClusterIP, and not with what the map has for it.
k8snet-lab answer --later 10.96.100.50
