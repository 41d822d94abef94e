"""Which model scores: follows ``models/current``, and keeps the model it has when the new one is broken."""

from __future__ import annotations

import logging
from typing import Final

from spearhead.model import Model, ModelError, ModelStore
from spearhead.timer import Timer

LOOK_SECONDS: Final = 0.2  # the pointer is read this often, so a promotion is obeyed within a second
RETRY_SECONDS: Final = 5.0  # a version that was refused may have been an I/O error
_log = logging.getLogger(__name__)


class ModelWatch:
    """The model in service, as far as it can be loaded."""

    def __init__(self, store: ModelStore) -> None:
        self.errors = 0  # times a version was refused
        self.error: str | None = None  # why the version in service is not the one that scores
        self._store = store
        self._model: Model | None = None
        self._refused: str | None = None
        self._look_due = Timer(LOOK_SECONDS)
        self._retry_due = Timer(RETRY_SECONDS)

    def adopt(self) -> None:
        """At the start: where no model is in service, use weights that lie in ``models/``."""
        try:
            self._store.adopt()
        except ModelError as error:
            self._refuse(None, error)

    def model(self) -> Model | None:
        """The model to score with now; None until the first one is in service."""
        if self._look_due.due():
            self._look()
        return self._model

    def _look(self) -> None:
        version: str | None = None
        try:
            version = self._store.current()
            if version is None or (self._model is not None and version == self._model.version and not self.error):
                return
            if version != self._refused or self._retry_due.due():
                self._model = self._store.load(version)
                self._refused = self.error = None
        except ModelError as error:
            self._refuse(version, error)
            if self._model is None:  # as replicas do that were running when it broke
                self._model = self._store.last_good()

    def _refuse(self, version: str | None, error: ModelError) -> None:
        if str(error) != self.error:
            _log.warning("model refused: %s", error)
            self._retry_due.due()
        self.errors += 1
        self._refused, self.error = version, str(error)
