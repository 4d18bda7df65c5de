"""The Pod network: CNI plugins."""
