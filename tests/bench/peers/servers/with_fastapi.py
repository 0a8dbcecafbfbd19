"""FastAPI by hand, as many start out: one request, one run, no batching."""

import served
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
model = served.load()


@app.post("/predict")
async def predict(request: Request) -> Response:
    sample = model.sample(served.decode(await request.body()))
    answer = model.answer(model.run([sample])[0])
    return Response(served.encode(answer), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=served.PORT, log_level="warning", access_log=False)
