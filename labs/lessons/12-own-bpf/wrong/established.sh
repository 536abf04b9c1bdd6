#!/bin/bash
# step: begin
# fails: none
# Reports connections once they stand: those that are refused never do.
sed -i 's|// TO DO: return 0 here.*|if (args->newstate != 1) return 0;|' states.c
