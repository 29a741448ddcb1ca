"""Texts that come from outside: whether they are UTF-8."""

from phicourse.errors import GenerateError


def checked(text: str) -> str:
    """A text from the command line, where bytes that are no UTF-8 have become lone surrogates."""
    return decoded(text.encode("utf-8", "surrogateescape"), "the command line")


def decoded(raw: bytes, place: str) -> str:
    """Bytes as text; GenerateError says where they are no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GenerateError(f"{place}: not a UTF-8 text (byte {error.start:,})") from None
