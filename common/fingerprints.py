"""Public keys in a form that two people can compare by phone: forty digits in eight groups of five.

They are the last 40 decimal digits of SHA-256, read as one number, over what was to be compared, each part
behind its length. Whoever wants other keys to look the same has to try 10^40 / 2, some 2^132.
"""

import hashlib
import hmac
import re

from common.errors import ConfigError, TrustError

_CONTEXT = b"veilfed.fingerprint.v1\0"
_DIGITS, _GROUP = 40, 5


def fingerprint(*parts: bytes) -> str:
    """For example `01234 56789 01234 56789 01234 56789 01234 56789`."""
    hashed = hashlib.sha256(_CONTEXT)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    digits = str(int.from_bytes(hashed.digest(), "big")).zfill(78)[-_DIGITS:]
    return " ".join(digits[start : start + _GROUP] for start in range(0, _DIGITS, _GROUP))


def require_same(told: str, seen: str, whose: str) -> None:
    """Returns if what somebody told is the fingerprint that we see, however it is spaced. Raises TrustError."""
    digits = re.sub(r"[\s-]", "", told)
    if not re.fullmatch(rf"[0-9]{{{_DIGITS}}}", digits):
        raise ConfigError(f"{told!r} is no fingerprint", f"{_DIGITS} digits; spaces and dashes do not matter")
    if not hmac.compare_digest(digits, seen.replace(" ", "")):
        raise TrustError(
            f"{whose} has the fingerprint {seen}, not the one that was told", "stop, and ask on another channel"
        )
