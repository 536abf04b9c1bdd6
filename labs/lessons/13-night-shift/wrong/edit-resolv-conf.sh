#!/bin/bash
# step: no-names
# fails: other-pods
# One pod is helped, until it is replaced.
k8snet-lab exec default/client -- sh -c 'sed "s/10\.96\.0\.10/10.96.0.53/" /etc/resolv.conf >/tmp/r && cat /tmp/r >/etc/resolv.conf'
