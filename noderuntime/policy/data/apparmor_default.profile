# What a container may do that asks for nothing else: be a process among its own, on its own files.
# It may not mount, nor write to those parts of /proc and /sys that are the kernel's rather than its
# namespaces'. No file of the node is included, so that the profile is the same on every node.

profile noderuntime-default flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  capability,
  umount,

  # Who stops the container: the node itself, and OCI runtimes that a distribution has confined.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  # Containers under this profile, among themselves; PID namespaces keep Pods apart.
  signal (send, receive) peer=noderuntime-default,
  ptrace (trace, read, tracedby, readby) peer=noderuntime-default,

  deny mount,

  # /proc: folders of processes are named by a number. What is beside them is the kernel's.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  # Of the sysctls those of System V shared memory are the IPC namespace's.
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,

  # /sys: cgroups are left to the mount that shows them, which is read-only or the container's own.
  deny /sys/{[^f],f[^s]}*/** wkl,
  deny /sys/fs/{[^c],c[^g]}*/** wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
