"""The project's images, made without a container engine, the same digest from the same input.

A recipe makes folders, a layer is a folder as a sorted tar with fixed times and owners, an image is
an OCI layout under ``.cluster/images/NAME`` and, pushed, a name in the local registry.
"""
