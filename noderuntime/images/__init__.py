"""Registry client, content store, unpacking, snapshots."""
