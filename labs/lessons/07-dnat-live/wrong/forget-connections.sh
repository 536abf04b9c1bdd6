#!/bin/bash
# step: mend
# fails: no-answer
# Connection tracking is not at fault: the rule is still there.
k8snet-lab exec node2 -- conntrack -D -p tcp --orig-dst 10.96.80.80 || true
