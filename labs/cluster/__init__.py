"""The cluster in miniature, one module for each box on the map of Kubernetes networking."""
