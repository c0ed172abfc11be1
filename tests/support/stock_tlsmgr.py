"""stock_tlsmgr - stock tlsmgr(8) alone, without master(8); the measuring tool has it, too"""

from __future__ import annotations

from bench.stock import ABOVE_ALL, SO_SNDBUFFORCE, StockTlsmgr

__all__ = ["ABOVE_ALL", "SO_SNDBUFFORCE", "StockTlsmgr"]
