"""cowest: pair a small trainable model with a black-box strong one, and tune it until it helps most."""

from cowest.run.telemetry import switch_off

__version__ = "0.1.0"

switch_off()  # here, since whoever imports a part of cowest comes here before any library reads its environment
