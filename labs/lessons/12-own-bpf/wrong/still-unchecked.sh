#!/bin/bash
# step: verifier
# fails: refused
# lookup_or_try_init() finds no room in a map that is full: it may give NULL, too.
sed -i 's|seen.lookup(&address)|seen.lookup_or_try_init(\&address, \&none)|' counts.c
