"""Mosec with its dynamic batching: max_batch_size and max_wait_time, and a `forward` that takes a list."""

import served
from mosec import Server, Worker


class Peer(Worker):
    def __init__(self) -> None:
        self.model = served.load()

    def deserialize(self, data: bytes) -> dict:
        return served.decode(data)

    def serialize(self, data: dict) -> bytes:
        return served.encode(data)

    def forward(self, data: list[dict]) -> list[dict]:
        rows = self.model.run([self.model.sample(request) for request in data])
        return [self.model.answer(row) for row in rows]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Peer, num=1, max_batch_size=served.BATCH_SIZE, max_wait_time=served.MAX_WAIT_MS)
    server.run()
