"""`python -m tracer` is k8snet-trace."""

from tracer.cli import main

if __name__ == "__main__":
    main()
