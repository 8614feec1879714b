"""Build networks of transformers, ultralytics, diffusers and segmentation-models-pytorch by name.

Each module here is for one library. It builds networks from names and local files, and derives example
inputs from their settings. Nothing is downloaded, and no code of a file is run. A library is imported when it
is used.
"""

from __future__ import annotations
