"""Custom resources: kinds that a CustomResourceDefinition brings to the API.

Stands for k8s.io/apiextensions-apiserver. Left out: conversion by webhooks, selectable fields, and what
`labs.cluster.extensions.rules` leaves out.

What belongs here: definitions, and what they say of their objects. What does not: HTTP and patches, which are the same
for all kinds (`labs.cluster.api`).
"""
