"""Tests that run in a guest: plain pytest files, as root of a machine with systemd and cgroup v2."""
