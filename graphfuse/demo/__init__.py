"""The demo: trains small networks on real images, fuses them, and shows what came of it."""

from graphfuse.demo.results import DemoResult, PairResult
from graphfuse.demo.running import run

__all__ = ["DemoResult", "PairResult", "run"]
