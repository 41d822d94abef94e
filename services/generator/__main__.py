"""``python -m services.generator``: run the stage. With ``--check`` only say whether its settings can work."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from services.generator.stage import Generator, check
from spearhead.errors import ConfigurationError
from spearhead.files import Files
from spearhead.settings import Settings, explain
from spearhead.stage import refuse, run_stage
from spearhead.volume import Volume


def main() -> None:
    """Run, or check and exit: 0 if the settings can work, 2 with one line on stderr if not."""
    if "--check" not in sys.argv[1:]:
        run_stage(Generator)
        return
    try:
        settings = Settings()
        check(settings, Volume(settings.flashblade_path, Files(settings.fsync)))
    except ValidationError as error:
        sys.exit(refuse(Generator.name, explain(error)))
    except ConfigurationError as error:
        sys.exit(refuse(Generator.name, str(error)))


if __name__ == "__main__":
    main()
