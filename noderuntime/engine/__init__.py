"""Sandboxes and containers: the state machine, the store, recovery."""
