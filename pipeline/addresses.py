"""Which URLs name an archive, and which a place for stores."""

import re
from urllib.parse import unquote

URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<host>[^/]*)(?P<key>.*)", re.DOTALL)
SCHEMES = ("s3", "gs", "az", "https", "http")


def check_url(text: str) -> str:
    """Return a URL that can name an archive. Raises ValueError, whose text does not repeat what may be secret."""
    match = URL.fullmatch(text)
    if match is None or match["scheme"] not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"known addresses begin with {known}; download what is elsewhere, and give its path here")
    host, key, web = match["host"], match["key"], match["scheme"].startswith("http")
    if "@" in host:
        raise ValueError(
            "an address is stored and shown, so it cannot hold a password; credentials come from the environment: "
            "see catalogs/README.md, URLs"
        )
    if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?", host):
        raise ValueError(f"expected a {'server' if web else 'bucket'} after {match['scheme']}://, got {host!r}")
    if web and re.search("[?#]", key):
        raise ValueError(
            "an address with ? or # is a question to a server; give that of a plain file (signed ones go out of date)"
        )
    plain = unquote(key) if web else key
    parts = plain.removeprefix("/").removesuffix("/").split("/")
    if {".", ".."} & set(parts) or ("" in parts and len(parts) > 1) or re.search(r"[\x00-\x1f\x7f]", plain):
        raise ValueError("the path of an address cannot have '.', '..', '//' or control characters")
    return text


def check_place(text: str) -> str:
    """Return a URL below which stores and their files can lie. Raises ValueError, which repeats nothing secret."""
    check_url(text)
    if not text.startswith("http") and re.search("[?#%]", text):
        raise ValueError("the path of a store cannot have '?', '#' or '%'")
    return text


def check_access(location: str, anonymous: bool, index: str | None) -> None:
    """Raise ValueError where what an entry says of access does not fit its location."""
    if index and not URL.match(location):
        raise ValueError("index: is for folders behind URLs; others are listed")
    if anonymous and not location.startswith(("s3://", "gs://", "az://")):
        raise ValueError("anonymous: is for object stores; nothing else is asked with credentials")


def hide_secrets(text: str) -> str:
    """Return a text in which URLs have neither password nor query, which can be a signature."""
    return re.sub(r"(://[^?\s]*\?).*", r"\1…", re.sub(r"://[^/@\s]*@", "://…@", text))
