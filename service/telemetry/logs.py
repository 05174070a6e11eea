"""What a server writes to its log: lines for people or JSON objects for machines, and a line for each request where it is asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from tlcli.service.telemetry.log_writer import LogWriter
from tlcli.service.telemetry.request_record import STAGES, Observed, under_way

LogFormat = Literal["text", "json"]

_FIELDS = "fields"
"""The attribute of a log record that holds what is an object's members in JSON."""

logger = logging.getLogger(__name__)


def set_up(log_format: LogFormat) -> None:
    """Lines from INFO on go to standard error, where the program has not set up logging.

    Args:
        log_format: `text` or `json`.
    """
    handler = _writer()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _writer() -> logging.Handler:
    try:
        return LogWriter(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # replaced by something that is no file
        return logging.StreamHandler()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, logger, message, and what belongs to a request or an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: dict[str, object] | None = getattr(record, _FIELDS, None)
        if fields is not None:
            told |= fields
        elif (request := under_way()) is not None:
            told["request_id"] = request.request_id
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def log_request(request: Observed) -> None:
    """A line about a request that is over."""
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
        "request %s: %s %s: %s by %s in %.1f ms%s, %d bytes came, %d went",
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
