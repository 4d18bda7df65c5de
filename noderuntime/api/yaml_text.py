"""YAML as the API server reads it, of a file that may be hostile: no aliases, no keys given twice.

An alias lets a short file stand for a huge one. A time stays a text, as in Kubernetes.
"""

from __future__ import annotations

from typing import Any


def documents(data: bytes) -> list[object]:
    """Return every document of the file that is not empty. Raises ValueError, RecursionError."""
    import yaml  # 2 MiB that few nodes need

    class Loader(yaml.SafeLoader):
        # Without timestamps: `expires: 2026-12-31T00:00:00Z` needs no quotes in Kubernetes either.
        yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own
            first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401  # PyYAML's own
            if self.check_event(yaml.AliasEvent):  # pyright: ignore[reportUnknownMemberType]
                raise ValueError("it has an alias (*name); write it out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401
            seen = set[str]()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    where = f"line {key.start_mark.line + 1}"
                    raise ValueError(f"{where}: {key.value[:80]!r} is given twice")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        return [each for each in yaml.load_all(data, Loader) if each is not None]  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
