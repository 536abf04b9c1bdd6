#!/bin/bash
# step: begin
# fails: compile
sed -i 's|// TO DO: return 0 here.*|if (args->newstate != 2) return 0|' states.c
