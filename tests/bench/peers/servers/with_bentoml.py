"""BentoML with its adaptive batching: a batchable API per workload.

An API can be batched over one parameter only; where the model takes more, the docs advise a composite of them.
"""

import bentoml
import numpy as np
import served
from pydantic import BaseModel


class Tokens(BaseModel):
    """The inputs of MiniLM, each of shape [1, 16]."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    token_type_ids: list[list[int]]


batchable = bentoml.api(batchable=True, max_batch_size=served.BATCH_SIZE, route="/predict")


class Model:
    def __init__(self) -> None:
        self.model = served.load()


class Tiny(Model):
    @batchable
    def predict(self, samples: np.ndarray) -> np.ndarray:
        return self.model.run_stacked({"input": samples.astype(np.float32)})


class MiniLm(Model):
    @batchable
    def predict(self, samples: list[Tokens]) -> np.ndarray:
        return self.model.run([self.model.sample(dict(tokens)) for tokens in samples])


class Photos(Model):
    @batchable
    def predict(self, samples: list[str]) -> list[dict]:
        rows = self.model.run([self.model.sample({"image": photo}) for photo in samples])
        return [self.model.answer(row) for row in rows]


chosen = {"tiny": Tiny, "minilm": MiniLm, "image": Photos}[served.WORKLOAD]
service = bentoml.service(chosen, name="peer", workers=1, logging={"access": {"enabled": False}})
