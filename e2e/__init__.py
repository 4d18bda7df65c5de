"""The end-to-end tests: a real one-node cluster, and what is shown on it."""
