#!/bin/bash
# step: three-hundred
# fails: endpoints
# Services whose selector finds no pod have no chains: packets to them are rejected.
sed 's/app: lets-ship-it/app: shop/' many.sh | bash | kubectl create -f - >/dev/null
