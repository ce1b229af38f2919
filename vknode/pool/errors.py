"""Typed pool errors, as exceptions here and as google.rpc.Status details on the wire.

`proto/vknode/pool/v1/errors.proto` tells what each kind means and which gRPC code
carries it. Server side raises `PoolFailure`; client side gets the same back from
`from_rpc_error`, also where a pool sent no detail.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from vknode.pool.v1 import errors_pb2

log = structlog.get_logger()

Kind = errors_pb2.PoolError.Kind

RETRYABLE = errors_pb2.PoolError.KIND_RETRYABLE
REFUSED = errors_pb2.PoolError.KIND_REFUSED
NO_CAPACITY = errors_pb2.PoolError.KIND_NO_CAPACITY
UNSUPPORTED_FIELD = errors_pb2.PoolError.KIND_UNSUPPORTED_FIELD
NOT_FOUND = errors_pb2.PoolError.KIND_NOT_FOUND

_CODES = {
    RETRYABLE: code_pb2.UNAVAILABLE,
    REFUSED: code_pb2.INVALID_ARGUMENT,
    NO_CAPACITY: code_pb2.RESOURCE_EXHAUSTED,
    UNSUPPORTED_FIELD: code_pb2.UNIMPLEMENTED,
    NOT_FOUND: code_pb2.NOT_FOUND,
}

# Codes that say nothing about the request itself.
_RETRYABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class PoolFailure(Exception):
    """A pool call failed; `kind` says whether trying again can help.

    `field` is a path in proto names or empty, `retry_after` seconds or None.
    `wrong_state` marks a stream to a container that is not in the needed state.
    """

    def __init__(
        self,
        kind: Kind.ValueType,
        message: str,
        *,
        field: str = "",
        retry_after: float | None = None,
        wrong_state: bool = False,
    ) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.kind = kind
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.wrong_state = wrong_state

    @property
    def retryable(self) -> bool:
        return self.kind == RETRYABLE


def to_status(failure: PoolFailure) -> status_pb2.Status:
    """The google.rpc.Status that carries a failure; for `rpc_status.to_status`."""
    detail = errors_pb2.PoolError(kind=failure.kind, field=failure.field, message=failure.message)
    if failure.retry_after is not None:
        detail.retry_after.FromNanoseconds(round(failure.retry_after * 1e9))
    code = code_pb2.FAILED_PRECONDITION if failure.wrong_state else _CODES[failure.kind]
    status = status_pb2.Status(code=code, message=str(failure))
    status.details.add().Pack(detail)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], failure: PoolFailure) -> NoReturn:
    """End the call that `context` serves with this failure. Always raises."""
    status = rpc_status.to_status(to_status(failure))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("grpc's abort returned")


def from_rpc_error(error: grpc.aio.AioRpcError) -> PoolFailure:
    """The failure that a pool meant, derived from the code where it gave no detail."""
    wrong_state = error.code() == grpc.StatusCode.FAILED_PRECONDITION
    detail = _detail(error)
    if detail is not None and detail.kind:  # one without says no more than the code
        retry_after = None
        if detail.HasField("retry_after"):
            retry_after = detail.retry_after.ToNanoseconds() / 1e9
        return PoolFailure(
            detail.kind,
            detail.message or error.details() or error.code().name,
            field=detail.field,
            retry_after=retry_after,
            wrong_state=wrong_state,
        )
    if error.code() == grpc.StatusCode.NOT_FOUND:
        kind = NOT_FOUND
    elif error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        kind = NO_CAPACITY
    elif error.code() in _RETRYABLE_CODES:
        kind = RETRYABLE
    else:
        kind = REFUSED
    return PoolFailure(kind, error.details() or error.code().name, wrong_state=wrong_state)


def _detail(error: grpc.aio.AioRpcError) -> errors_pb2.PoolError | None:
    """None also where the bytes are none of a Status: a pool may be anybody's."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            for packed in status_pb2.Status.FromString(value).details:
                detail = errors_pb2.PoolError()
                if packed.Unpack(detail):
                    return detail
        except DecodeError:
            log.warning("pool_error_unreadable", code=error.code().name)
    return None
