"""What every stage of Spearhead shares. Nothing in here imports from ``services``."""

__version__ = "0.1.0"
