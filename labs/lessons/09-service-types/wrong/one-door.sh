#!/bin/bash
# step: doors
# fails: not-seen
# Calls the door of one node only.
k8snet-lab exec client-host -- curl -sS http://172.18.0.2:30080/
