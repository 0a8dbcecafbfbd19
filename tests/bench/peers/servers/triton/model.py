"""A model of Triton's Python backend. The dynamic batcher hands over the requests of a batch, not yet stacked."""

import numpy as np
import served
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.model = served.load()

    def execute(self, requests: list) -> list:
        rows = self.model.run([self.sample(request) for request in requests])
        return [triton.InferenceResponse([self.output(row)]) for row in rows]

    def sample(self, request) -> served.Sample:
        inputs = {item.name(): item.as_numpy() for item in request.inputs()}
        if served.WORKLOAD == "image":
            return self.model.sample({"image": inputs["image"][0, 0]})
        return self.model.sample(inputs)

    def output(self, row: np.ndarray):
        if served.WORKLOAD == "image":
            text = served.encode(self.model.answer(row))
            return triton.Tensor("predictions", np.array([[text]], np.object_))
        return triton.Tensor(self.model.output, row[None])
