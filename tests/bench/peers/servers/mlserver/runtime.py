"""A custom MLServer runtime; adaptive batching (max_batch_size, max_batch_time) merges requests before `predict`."""

import served
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Peer(MLModel):
    async def load(self) -> bool:
        self.model = served.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        return InferenceResponse(model_name=self.name, outputs=[self.output(payload)])

    def output(self, payload: InferenceRequest) -> ResponseOutput:
        if served.WORKLOAD == "image":
            photos = StringCodec.decode_input(payload.inputs[0])
            rows = self.model.run([self.model.sample({"image": photo}) for photo in photos])
            texts = [served.encode(self.model.answer(row)).decode() for row in rows]
            return StringCodec.encode_output("predictions", texts)
        batch = {item.name: NumpyCodec.decode_input(item) for item in payload.inputs}
        return NumpyCodec.encode_output(self.model.output, self.model.run_stacked(batch))
