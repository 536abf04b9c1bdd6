"""The tools together: the trace on the cluster in miniature, checked by conntrack and by the pods that answer."""
