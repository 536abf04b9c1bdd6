#!/bin/bash
# Prints 300 Services, shop-1 to shop-300, all with the pods of lets-ship-it behind them.
for number in $(seq 1 300); do
    cat <<END
---
apiVersion: v1
kind: Service
metadata: {name: shop-$number, namespace: fastapi}
spec: {selector: {app: lets-ship-it}, ports: [{port: 80, targetPort: 8000}]}
END
done
