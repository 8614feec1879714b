"""Networks of other libraries by name: transformers, ultralytics, diffusers, segmentation-models-pytorch.

Each module here is for one library. It builds networks from names and local files, derives example inputs from
their settings, downloads nothing and runs no code of a file. A library is imported when it is used.
"""

from __future__ import annotations
