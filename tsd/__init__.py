"""TSD (CVPR 2020, *Revisiting the Sibling Head in Object Detector*) as a reproducible experiment pipeline."""

__version__ = "0.1.0"

REVISION = 1
"""Part of every run's digest. Whoever changes code so that results change raises it: all runs are then made anew."""
