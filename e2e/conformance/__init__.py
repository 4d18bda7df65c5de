"""CRI's own conformance suite (critest) against ``noderuntime serve``, without the internet.

`standins` makes stand-ins for the suite's images, `node` has the registry, the runtime and the
network that a run needs and gives the machine back, `suite` runs critest and compares what it
found with ``expected.toml``.
"""
