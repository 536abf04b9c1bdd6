#!/bin/bash
# step: python
# fails: shares
# Multiplies, but forgets that what a rule takes does not come to the next one.
sed -i 's/share = probability$/share = arriving * probability/' "$WORKSPACE/chains.py"
