"""``make bench``: our runtime beside containerd, in one run, on the same machine."""
