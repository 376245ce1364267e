"""Flower's Control API, as an account with a client certificate sees it through the gateway."""

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest, StreamLogsRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common import bundle
from common.errors import FederationError, ProtocolError

FINISHED = "finished"


class Unreachable(ProtocolError):
    """The coordinator cannot be reached, or this account may not do that."""


@dataclass(frozen=True)
class Submitted:
    """A run as the SuperLink lists it. number: the SuperLink's; run: ours, hexadecimal; a resumed run has several."""

    number: int
    run: str
    state: str
    outcome: str
    details: str
    since: str

    @property
    def finished(self) -> bool:
        return self.state == FINISHED


class Control:
    """address: host:port. context: TLS with the pinned roots and the account's certificate."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self._address = address
        self._client = ControlHttpClient(
            f"https://{address}", interceptors=[RuntimeVersionHttpInterceptor(component_name="CLI")], verify=context
        )

    def start(self, content: bytes, signature: str, run: str) -> int:
        """Submit a signed bundle as that run. Returns the SuperLink's number of it."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab("", content, {})),
            override_config=user_config_to_proto(dict(zip(bundle.SETTINGS, (run, signature), strict=True))),
        )
        with self._answered():
            number = int(self._client.StartRun(request).run_id)
        if not number:
            raise ProtocolError("the coordinator did not take the bundle")
        return number

    def stop(self, number: int) -> bool:
        with self._answered():
            return bool(self._client.StopRun(StopRunRequest(run_id=number)).success)

    def runs(self) -> list[Submitted]:
        """All runs, oldest first."""
        with self._answered():
            found = [run_from_proto(run) for run in self._client.ListRuns(ListRunsRequest()).run_dict.values()]
        listed = [
            Submitted(
                run.run_id,
                str(run.override_config.get("run", "")),
                run.status.status,
                run.status.sub_status,
                run.status.details,
                run.pending_at,
            )
            for run in found
        ]
        return sorted(listed, key=lambda run: run.since)

    def events(self, number: int) -> Iterator[Mapping[str, Any]]:
        """What the coordinator says of a run, from its beginning, until it ends."""
        rest = ""
        with self._answered():
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=number, after_timestamp=0.0)):
                *lines, rest = (rest + part.log_output).split("\n")
                for line in lines:
                    if event := _event(line):
                        yield event

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code in (400, 401, 403):
                raise Unreachable(
                    f"the coordinator does not let this account do that ({code})",
                    "which role has the certificate? Ask the coordinator's administrator",
                ) from None
            raise Unreachable(f"the coordinator answers {code}") from None
        except (httpx.HTTPError, OSError) as error:
            raise Unreachable(
                f"the coordinator at {self._address} cannot be reached: {error or type(error).__name__}",
                "is it running, and is this the right address?",
            ) from None


def _event(line: str) -> Mapping[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def rebuilt(error: Mapping[str, Any]) -> FederationError:
    """The error that stopped a run at the coordinator, as it is raised here."""
    from common import errors

    kind = getattr(errors, str(error.get("code")), FederationError)
    known = isinstance(kind, type) and issubclass(kind, FederationError)
    return (kind if known else FederationError)(str(error.get("message")), str(error.get("hint", "")))
