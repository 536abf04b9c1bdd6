#!/bin/bash
# step: last
# fails: wrong-answer
# Answers with the number of Services, and not with that of the rules on the way.
k8snet-lab answer --later 300
