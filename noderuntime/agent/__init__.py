"""The node's side of the operator, in the DaemonSet."""
