"""May a request come in, decided on its headers alone; and its body's bytes, counted and timed."""

from __future__ import annotations

from gateway.intake.admission import Form, Gate, SharedSlots, Slots, accept_body, check_headers, raw_filename
from gateway.intake.body import Intake, received_bytes

__all__ = [
    "Form",
    "Gate",
    "Intake",
    "SharedSlots",
    "Slots",
    "accept_body",
    "check_headers",
    "raw_filename",
    "received_bytes",
]
