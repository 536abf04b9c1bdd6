#!/bin/bash
# step: count-them
# fails: wrong-answer
# Counts the questions for IPv4 addresses only.
k8snet-lab answer --later 4
