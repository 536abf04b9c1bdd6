#!/bin/bash
# step: behind-a-service
# fails: wrong-answer
# Gives the Service's name: a Service is no pod.
k8snet-lab answer --later cart
