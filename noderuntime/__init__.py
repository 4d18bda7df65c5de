"""A Kubernetes node runtime that is declared in Git and enforced on every node."""

__version__ = "0.1.0"
