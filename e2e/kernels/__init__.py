"""A second Linux kernel, as a process: User Mode Linux of Debian, for what this machine's has not.

cgroup v2 with systemd, AppArmor, SELinux, and power that can be cut. A guest boots in seconds, needs
no KVM, has a throw-away root disk made from Debian packages and sees this repository through
hostfs. Tests that run in it are ordinary pytest files in ``inside/``; those on the outside boot
a guest and give it commands. ``lane`` fetches the kernel, ``image`` makes the disk, ``boot`` boots.
Source: Documentation/virt/uml of the kernel.
"""
