"""``python -m bench.variant up …``: ``spearhead up`` whose prep computes no features, for the benchmark alone.

The product has no such setting: a pipeline without history is worth nothing but as a measure of what history costs.
"""

from __future__ import annotations

import sys

from spearhead.child import Child
from spearhead.cli import main


class _Child(Child):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.without_history"] if self.stage == "prep" else super().command()


if __name__ == "__main__":
    from spearhead import supervisor

    supervisor.Child = _Child
    main()
