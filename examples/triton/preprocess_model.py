"""Triton's Python backend: encoded image files in, what the classifier reads out. make_repository.py copies this to
<name>_preprocess/1/model.py, with the modules of this project that it imports beside it and the facts in facts.json.

Interface: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/python_backend/README.html
"""
from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parent))
from data.images import read_image, resize_and_crop
from graphs.facts import of_json
from graphs.pictures import picture_of
from utils import UserError


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Called once, when the model is loaded."""
        facts = Path(__file__).resolve().parent / "facts.json"
        self.picture = picture_of(of_json(facts), facts.name)
        self.decoders = ThreadPoolExecutor()

    def execute(self, requests: list) -> list:
        """For each request: IMAGE, bytes [B, 1], to PIXELS, [B, ...] as the classifier reads them, or an error."""
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()) for request in requests]

    def answer(self, files: np.ndarray):
        try:
            pixels = np.stack(list(self.decoders.map(self.pixels, range(len(files)), files.reshape(-1))))
        except UserError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", self.picture.of(pixels))])

    def pixels(self, index: int, file: bytes) -> np.ndarray:
        return resize_and_crop(read_image(io.BytesIO(file), f"image {index} of the request"), self.picture.size)

    def finalize(self) -> None:
        """Called once, before the model is unloaded."""
        self.decoders.shutdown()
