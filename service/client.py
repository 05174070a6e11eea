"""The Python client: a picture in, scores and maps out."""

from __future__ import annotations

import io
import ipaddress
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image, ImageOps

from contract.errors import NotFoundError, PictureError, RequestError, ServerError, TlcliError
from service import errors, wire
from service.answers import Classification, ModelInfo, ModelStatus, StreamAnswer
from service.health import OVERALL
from service.pb.tlcli.v1 import classifier_pb2 as pb
from service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from service.query import MapFormat, MapQuery, Query, require_map_format
from service.settings import join_address
