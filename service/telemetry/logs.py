"""Server log as text or JSON lines, optionally with one line per request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from tlcli.service.telemetry.log_writer import LogWriter
from tlcli.service.telemetry.request_record import NO_REQUEST, STAGES, RequestRecord, current_request

LogFormat = Literal["text", "json"]

_FIELDS = "fields"
"""Attribute of a log record that holds additional fields for the JSON object."""

logger = logging.getLogger(__name__)


def configure_logging(log_format: LogFormat) -> None:
    """Log messages of level INFO and above to standard error, unless the program has already configured logging.

    Args:
        log_format: format of the log lines.
    """
    handler = _writer()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _writer() -> logging.Handler:
    try:
        return LogWriter(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # standard error is not a file
        return logging.StreamHandler()


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object per line.

    The object contains the time (RFC 3339), level, logger and message, and the fields of a request or an exception if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of JSON."""
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: dict[str, object] | None = getattr(record, _FIELDS, None)
        if fields is not None:
            members |= fields
        elif (request := current_request()) is not NO_REQUEST:
            members["request_id"] = request.request_id
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, ensure_ascii=False, default=str)


def log_request(request: RequestRecord) -> None:
    """Log one line for a finished request."""
    took_ms = {stage: took_ns / 1e6 for stage, took_ns in request.took_ns().items()}
    fields = {
        "request_id": request.request_id,
        "protocol": request.protocol,
        "method": request.method,
        "model": request.model,
        "version": request.version,
        "code": request.code,
        "images": request.images,
        "received_bytes": request.received_bytes,
        "sent_bytes": request.sent_bytes,
        **{f"{stage}_ms": round(took_ms[stage], 3) for stage in (*STAGES, "total") if stage in took_ms},
        **({"trace_id": request.trace_id} if request.trace_id else {}),
    }
    answered_by = f"{request.model} version {request.version}" if request.model else "no model"
    stages = ", ".join(f"{stage} {took_ms[stage]:.1f}" for stage in STAGES if stage in took_ms)
    logger.info(
        "request %s: %s %s: %s by %s in %.1f ms%s, %d bytes received, %d sent",
        request.request_id,
        request.protocol,
        request.method,
        request.code,
        answered_by,
        took_ms["total"],
        f" ({stages})" if stages else "",
        request.received_bytes,
        request.sent_bytes,
        extra={_FIELDS: fields},
    )
