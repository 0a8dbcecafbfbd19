"""LitServe with its dynamic batching: max_batch_size and batch_timeout."""

import litserve
import numpy as np
import served
from fastapi import Response


class Peer(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = served.load()

    def decode_request(self, request: dict) -> served.Sample:
        return self.model.sample(request)

    def batch(self, inputs: list[served.Sample]) -> list[served.Sample]:
        return inputs

    def predict(self, samples: list[served.Sample]) -> np.ndarray:
        return self.model.run(samples)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, row: np.ndarray) -> Response:
        return Response(served.encode(self.model.answer(row)), media_type="application/json")


if __name__ == "__main__":
    api = Peer(max_batch_size=served.BATCH_SIZE, batch_timeout=served.MAX_WAIT_MS / 1000)
    # Its docs: for more than a hundred requests a second.
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=served.PORT, log_level="warning", generate_client_file=False)
