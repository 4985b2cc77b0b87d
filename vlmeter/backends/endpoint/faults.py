"""What can go wrong between a client and a server, each as one sentence.

A *refusal* is about the whole server: nothing can be measured until somebody mends it, so it is a `UserError` and names
what to mend. Every other fault is about one request; what was measured before it stays.

No message ever holds an API key: whatever a server said is quoted only after `quoted` has taken the key out, and what
it says to a refused key is not quoted at all.
"""

from __future__ import annotations

from vlmeter.common.errors import UserError

#: So much of what a server says is quoted; some answer with a whole page.
MOST_QUOTED = 300


class ServerFault(Exception):
    """A request did not become a sample; the message is one sentence."""


class Refusal(ServerFault, UserError):
    """The server will answer no request of this kind: the study, the key or the server has to change."""


class Unreachable(Refusal):
    """Nobody listens at the address, or its name or certificate is not valid."""


class KeyRefused(Refusal):
    """The server wants a key, or another one (401, 403)."""


class WrongModel(Refusal):
    """The server has no model of this name."""


class NotAnEndpoint(Refusal):
    """There is a server, but not an OpenAI-compatible one at this path (404, a redirect, a page)."""


class Rejected(ServerFault):
    """The server takes the request for malformed (400, 422)."""


class Busy(ServerFault):
    """The server turns the request away for now (429, 503)."""


class Failed(ServerFault):
    """The server failed at the request: a status of 5xx, or an error inside the stream of an answer."""


class TimedOut(ServerFault):
    """The answer did not come, or did not end, within the time limit."""


class ConnectionLost(ServerFault):
    """The connection ended before the answer did."""


class Unreadable(ServerFault):
    """The answer is not what the API says that it is."""


class InvalidSample(ServerFault):
    """The answer is whole, and is not what was asked for: its counts, its length or its caches are others."""


def quoted(text: str, *, key: str | None) -> str:
    """Return what a server said, on one line, shortened, and without the key."""
    said = " ".join(text.split())
    if key:
        said = said.replace(key, "[key]")
    return said if len(said) <= MOST_QUOTED else said[:MOST_QUOTED] + " ..."
