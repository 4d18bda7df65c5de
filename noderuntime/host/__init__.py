"""What touches the kernel, the OCI runtime and the monitor."""
