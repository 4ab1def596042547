"""Keeps the record of one trial while it runs."""

import dataclasses
import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algoperf import hardware, records
from algoperf.errors import UserError
from algoperf.records import Row, Status

if TYPE_CHECKING:
    from algoperf.runner import Seeds, TrialConfig
