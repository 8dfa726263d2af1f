"""After training: what is done to a network whose hidden layers stay as they are."""

from .extend import extend_
from .extension import Extension
from .quantize import quantize_readout_
from .quantized import QuantizedReadout
from .statistics import Statistics, statistics_of
from .streaming import StreamingReadout

__all__ = ["Extension", "QuantizedReadout", "Statistics", "StreamingReadout", "extend_", "quantize_readout_", "statistics_of"]
