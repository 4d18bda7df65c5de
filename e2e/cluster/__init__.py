"""The cluster of ``make up``: Kubernetes' own components on this machine, our runtime under them.

What always holds: everything that is made is written to ``.cluster/state.json`` with its undo
before it is made, so that ``down`` undoes it also when ``up`` was cut off in the middle.
"""
