#!/bin/bash
# step: three-hundred
# fails: no-service
sed 's/seq 1 300/seq 1 30/' many.sh | bash | kubectl create -f - >/dev/null
