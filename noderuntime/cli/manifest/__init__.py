"""A Pod's manifest, and what the kubelet would ask the runtime for to run it."""
