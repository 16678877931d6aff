"""What the coordinator and the agents of the nodes say to each other: an `Order` to an agent, a `Report` from it.

A message is parsed field by field: the other side may run another version of the code, or be broken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from framework.launch.supervisor.failure import Evidence, Failure, Kind

MAX_DETAIL = 2000
"""Longest detail of a failure in a message (characters), so that the message fits a line of `link.MAX_LINE`."""
LAST_TIME = 1e11
"""Later times are none (Unix, s): the year 5138."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Order:
    """A message of the coordinator to an agent."""

    action: Literal["start", "stop", "exit"]
    """Start or stop an attempt, or end the supervisor."""
    attempt: int = 0
    """The attempt's number."""
    port: int = 0
    """To start: the port on node 0 where the ranks meet."""
    dump: bool = False
    """To stop: whether all workers write their stacks first."""
    code: int = 0
    """To exit: the supervisor's exit code."""

    def fields(self) -> dict[str, Any]:
        """Return the message's JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """A message of an agent to the coordinator."""

    node: int
    """The agent's node."""
    event: Literal["ready", "ended", "leaving", "lost"]
    """The node is ready for an order; its workers have ended; it leaves the job because its scheduler has told it to
    end; or its connection is lost, which the coordinator itself reports.
    """
    done: bool = False
    """Ended: whether all workers succeeded."""
    failure: Failure | None = None
    """Ended: the node's own failure; neither done nor failed means that it was ordered to stop."""

    def fields(self) -> dict[str, Any]:
        """Return the message's JSON object."""
        fields = asdict(self)
        if self.failure is not None:
            fields["failure"]["detail"] = self.failure.detail[:MAX_DETAIL]
        return fields


def parse_order(fields: Any) -> Order:
    """Return the order in a JSON object. Raises `ValueError` for anything else."""
    numbers = {
        name: _number(fields, name, 0, 65535 if name == "port" else None) for name in ("attempt", "port", "code")
    }
    return Order(
        _one_of(fields, "action", ("start", "stop", "exit")), dump=_one_of(fields, "dump", (False, True)), **numbers
    )


def parse_report(fields: Any, nodes: int) -> Report:
    """Return the report of one of `nodes` nodes in a JSON object. Raises `ValueError` for anything else."""
    node = _number(fields, "node", 0, nodes - 1)
    event: Literal["ready", "ended", "leaving"] = _one_of(fields, "event", ("ready", "ended", "leaving"))
    failure = None if _value(fields, "failure") is None else _failure(fields["failure"], nodes)
    return Report(node, event, _one_of(fields, "done", (False, True)), failure)


def _failure(fields: Any, nodes: int) -> Failure:
    detail, time = _value(fields, "detail"), _value(fields, "time")
    if not isinstance(detail, str) or len(detail) > MAX_DETAIL:
        raise ValueError("detail: not a text, or too long")
    if type(time) not in (int, float) or not 0 <= time < LAST_TIME:
        raise ValueError(f"time: {time!r:.100} is no time")
    kind = Kind(_one_of(fields, "kind", [str(each) for each in Kind]))
    evidence = Evidence(_number(fields, "evidence", min(Evidence), max(Evidence)))
    return Failure(kind, detail, _number(fields, "node", 0, nodes - 1), float(time), evidence)


def _value(fields: Any, name: str) -> Any:
    if not isinstance(fields, Mapping) or name not in fields:
        raise ValueError(f"{name}: missing")
    return fields[name]


def _number(fields: Any, name: str, least: int, most: int | None) -> int:
    value = _value(fields, name)
    if type(value) is not int or value < least or (most is not None and value > most):
        raise ValueError(f"{name}: {value!r:.100} is no integer from {least} to {most}")
    return int(value)


def _one_of(fields: Any, name: str, allowed: Collection[Value]) -> Any:
    value = _value(fields, name)
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise ValueError(f"{name}: {value!r:.100} is none of {', '.join(map(str, allowed))}")
    return value
