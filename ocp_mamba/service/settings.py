"""The settings of a service, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ocp_mamba.errors import ConfigError

MIB = 2**20
MAY_BE_ZERO = ("port", "threads")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServiceSettings:
    """What a service allows and how it works.

    Attributes:
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        token: the bearer token that requests must bear; None for none.
        max_batch: chains that the model computes at once, at most.
        max_queue: chains that may wait; further requests get status 429.
        max_positions: concepts or vectors of one request, all its chains together.
        max_steps: steps of a request to predict, or of a rollout.
        max_top_k: concepts that an answer names for each step.
        body_limit: bytes of a request's body.
        body_seconds: time in which a request's body must have arrived.
        head_seconds: time in which a request's head must have arrived.
        threads: of torch; 0 leaves torch's choice.
        max_sessions: sessions that may be open.
        session_idle: seconds after its last use when a session ends.
        session_age: seconds after its start when a session ends.
        session_bytes: memory of the states of all sessions.
        poll_seconds: how often the alias is looked up.
        stop_seconds: time for the requests under way when the service stops.
    """

    host: str = "127.0.0.1"
    port: int = 5001
    token: str | None = None
    max_batch: int = 64
    max_queue: int = 1024
    max_positions: int = 8192
    max_steps: int = 100
    max_top_k: int = 100
    body_limit: int = 16 * MIB
    body_seconds: float = 30.0
    head_seconds: float = 10.0
    threads: int = 0
    max_sessions: int = 500
    session_idle: float = 600.0
    session_age: float = 3600.0
    session_bytes: int = 512 * MIB
    poll_seconds: float = 1.0
    stop_seconds: int = 30

    def __post_init__(self) -> None:
        """Refuse settings that cannot be.

        Raises:
            ConfigError: a number is below its least value; names the setting.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or value is None:
                continue
            may_be_zero = field.name in MAY_BE_ZERO
            if value < 0 or (value == 0 and not may_be_zero):
                wanted = "0 or more" if may_be_zero else "more than 0"
                raise ConfigError(f"{field.name}={value} found, {wanted} wanted")
        if self.token is not None and not self.token.strip():
            raise ConfigError("the token is empty; leave it out, or give one of 16 letters or more")

    @property
    def only_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOOPBACK
