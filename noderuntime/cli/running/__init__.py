"""A Pod on this machine without any cluster, by a runtime that is there for it alone."""
