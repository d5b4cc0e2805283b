"""What a caller shows as its key, whichever header it uses; of a key only the digest goes on."""

from gateway.core.keys import read_key
from gateway.core.principal import Credential
from gateway.errors import InvalidRequest

REMEMBERED = 1024  # keys
LONGEST = 8 * 1024  # characters; a JWT may be long


def token_of(header: str, value: bytes) -> str:
    """The key in a header's value; "" when there is none in it.

    Raises:
        InvalidRequest: characters no key has.
    """
    if not value.isascii():
        raise _odd(header)
    text = value.decode("ascii").strip()
    if header == "authorization":
        scheme, _, rest = text.partition(" ")
        if scheme.lower() == "bearer":
            text = rest.strip()
    if not text.isprintable() or len(text) > LONGEST:
        raise _odd(header)
    return text


def credential_of(token: str) -> Credential:
    """The digest of a key, and a token itself; of those shown often it is remembered."""
    credential = _known.get(token)
    if credential is None:
        if len(_known) >= REMEMBERED:
            _known.clear()
        credential = _known[token] = read_key(token)
    return credential


_known: dict[str, Credential] = {}


def _odd(header: str) -> InvalidRequest:
    return InvalidRequest(
        f"The header {header} holds characters that no API key has.", param=header
    )
