"""Sessions that the client holds: where a text is, as base64, signed if the server has a key.

What is within the base64 is the file of ``lm-generate --save-state``; nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from lm_runtime.files import UnusableFileError
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.server.errors import invalid

_SIGNED = hashlib.sha256().digest_size
_PURPOSE = b"steplm session\n"


class States:
    """Writes and reads the states of sessions.

    Args:
        key: signs them; one that another key signed, or none, is then refused.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key

    def write(self, session: Session, model: StepModel) -> str:
        """Where ``session`` is, as text."""
        content = session.to_bytes(model)
        return base64.b64encode(self._signature(content) + content).decode("ascii")

    def read(self, text: object, model: StepModel) -> Session:
        """The session that :meth:`write` wrote.

        Raises:
            ApiError: it is damaged, of another model, or not signed by this server's key.
        """
        if not isinstance(text, str):
            raise invalid("state must be a string", "state")
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:
            raise invalid("state is not base64", "state") from None
        if self._key is not None:
            signature, content = content[:_SIGNED], content[_SIGNED:]
            if not hmac.compare_digest(signature, self._signature(content)):
                raise invalid("state is not signed by this server's key", "state")
        try:
            return Session.from_bytes(content, model)
        except UnusableFileError as error:
            raise invalid(error, "state") from None

    def _signature(self, content: bytes) -> bytes:
        return hmac.digest(self._key, _PURPOSE + content, "sha256") if self._key is not None else b""
