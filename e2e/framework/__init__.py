"""What the end-to-end tests stand on: the cluster, its clients, waiting, Pods."""
