#!/bin/bash
# step: path
# fails: wrong-answer
# The chain of the example, default/kubernetes.
k8snet-lab answer --later KUBE-SVC-NPX46M4PTMTKRN6Y
