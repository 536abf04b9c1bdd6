#!/bin/bash
# step: shut
# fails: different
# Deletes the Service and makes another one, which gets another ClusterIP.
kubectl -n shop delete service web
kubectl -n shop create service clusterip web --tcp 80:8080
