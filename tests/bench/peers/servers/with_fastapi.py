"""FastAPI by hand, as many start out: one request, one run, no batching."""

import served
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
model = served.load()


@app.post("/predict")
async def predict(request: Request) -> JSONResponse:
    sample = model.sample(await request.json())
    return JSONResponse(model.answer(model.run([sample])[0]))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=served.PORT, log_level="warning", access_log=False)
