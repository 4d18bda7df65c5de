"""``python -m noderuntime``: the same as the command ``noderuntime``."""

from noderuntime.cli.main import main

raise SystemExit(main())
