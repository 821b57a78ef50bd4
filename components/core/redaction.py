"""Remove secrets from what is printed and written.

A secret is the value of an environment variable with a name such as `OPENAI_API_KEY`, `HF_TOKEN` or
`RAFT_KFP_COOKIES`; the content of a file that such a variable names (`OPENAI_API_KEY_FILE`,
`GOOGLE_APPLICATION_CREDENTIALS`); a value passed to `keep_secret`; and user and password in any URL
that is printed. Servers repeat keys in their errors, and libraries put them in exceptions, so
`guarded` covers everything that a command prints, tracebacks too. Storage redacts what it writes,
except URLs, which may be a document's own text. The output of other processes is not covered.
"""

import base64
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

MASK = "***"
LEAST = 8
"""Characters; shorter values, such as `none` for a server without keys, occur in many texts."""

SAYS_SO = re.compile(
    r"(KEY|TOKEN|PASSWORD|PASSWD|SECRET|COOKIES?|CREDENTIALS?)(?P<file>_FILE)?$", re.IGNORECASE
)
"""Names of variables with a secret, or with the name of a file that holds one."""

_NAMES_A_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_SECRET_FIELDS = ("private_key", "private_key_id", "refresh_token", "client_secret", "access_token")
_IN_URL = re.compile(r"(?<=://)[^\s/@\"'<>]+@")

_more_secrets: set[str] = set()


def keep_secret(value: str) -> None:
    """Add a secret, such as a token of a kubeconfig."""
    _more_secrets.add(value)
    _pattern.cache_clear()


def redact(text: str) -> str:
    """A text without the known secrets, plain or encoded as JSON, URL or base64."""
    pattern = _pattern()
    return text if pattern is None else pattern.sub(MASK, text)


def has_password(text: str) -> bool:
    """Whether a text holds a URL with a user or a password."""
    return "://" in text and _IN_URL.search(text) is not None


@cache
def _pattern() -> re.Pattern[str] | None:
    """Matches all secrets; made once, as the environment of a command does not change."""
    secrets = _more_secrets | _in_environment(os.environ)
    forms = {form for secret in secrets if len(secret) >= LEAST for form in _forms(secret)}
    if not forms:
        return None
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest_first)))


def _in_environment(variables: Mapping[str, str]) -> set[str]:
    secrets: set[str] = set()
    for name, value in variables.items():
        says_so = SAYS_SO.search(name)
        if name == _NAMES_A_FILE or (says_so and says_so["file"]):
            secrets |= _in_file(Path(value))
        elif says_so:
            secrets.add(value.strip())
        if "://" in value and "@" in value:
            secrets |= _in_url(value)
    return secrets


def _in_file(path: Path) -> set[str]:
    """The content of a file, or the secret fields of a JSON object."""
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, dict):
                text = "\n".join(str(value[name]) for name in _SECRET_FIELDS if value.get(name))
        # A private key has many lines, and a message may quote any one of them.
        return {text, *(line for line in text.splitlines() if not line.startswith("-----"))}
    return set()


def _in_url(text: str) -> set[str]:
    """Password, and user with password, of a URL such as a proxy's."""
    try:
        url = urlsplit(text)
        user, password = url.username or "", url.password or ""
    except ValueError:
        return set()
    both = {password, f"{user}:{password}"} if password else {user}
    return both | {unquote(part) for part in both}


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield json.dumps(secret)[1:-1]
    yield repr(secret)[1:-1]
    yield quote(secret, safe="")
    yield quote(secret)
    data = secret.encode("utf-8", "surrogateescape")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(data).decode()
        yield encode(data).decode().rstrip("=")


class _Clean:
    """A text stream without the known secrets, and without users and passwords in URLs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        clean = redact(text)
        self._stream.write(_IN_URL.sub(f"{MASK}@", clean) if "://" in clean else clean)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # would bypass `write`
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Remove secrets from everything that a block prints."""
    _pattern.cache_clear()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Clean(sys.stdout), _Clean(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
