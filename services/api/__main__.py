"""``python -m services.api``: settings from the environment, until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from services.api.server import serve
from spearhead.errors import ConfigurationError
from spearhead.files import Files
from spearhead.heartbeat import worker_name
from spearhead.settings import Settings, explain
from spearhead.stage import refuse
from spearhead.volume import Volume


def main() -> int:
    """The exit status; the volume need not be there yet, the answers say so until it is."""
    try:
        settings = Settings()
        volume = Volume(settings.flashblade_path, Files(settings.fsync))
        serve(settings, volume, settings.worker_id or worker_name())
    except ValidationError as error:
        return refuse("api", explain(error))
    except ConfigurationError as error:
        return refuse("api", str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
