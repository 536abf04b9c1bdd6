#!/bin/bash
# step: a-name-of-your-own
# fails: status
# Makes the Service in another namespace: there the short name is another full name.
kubectl -n fastapi create service clusterip orders --tcp=80
