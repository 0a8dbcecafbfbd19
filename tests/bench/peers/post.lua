-- One body, sent again and again; what wrk measured is left as JSON. Called by own_load.py.
local file = assert(io.open(os.getenv("LOAD_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()

function done(summary, latency, requests)
  local errors = summary.errors
  local result = assert(io.open(os.getenv("LOAD_RESULT"), "w"))
  result:write(string.format(
    '{"per_second": %f, "p50_ms": %f, "p99_ms": %f, "failures": {"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}}',
    (summary.requests - errors.status) / summary.duration * 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout
  ))
  result:close()
end
