"""Exec, attach and port-forward: the protocol apart from the sockets."""
