-- Sends what the files named in the environment hold, and prints what wrk found as one line of JSON.
-- LOAD_HEADERS: a file with a header a line. LOAD_BODIES: files, a line each; of several, each request takes one at random.

local function read(path)
    local file = assert(io.open(path, "rb"))
    local content = file:read("*a")
    file:close()
    return content
end

for line in io.lines(os.getenv("LOAD_HEADERS")) do
    local name, value = line:match("^([^:]+):%s*(.*)$")
    wrk.headers[name] = value
end

local bodies = {}
for path in io.lines(os.getenv("LOAD_BODIES")) do
    bodies[#bodies + 1] = read(path)
end

if #bodies > 0 then
    wrk.method = "POST"
    wrk.body = bodies[1]
end

local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds, microseconds; } bench_time; int gettimeofday(bench_time *, void *);")
local time = ffi.new("bench_time")

local function now()
    ffi.C.gettimeofday(time, nil)
    return tonumber(time.seconds) + tonumber(time.microseconds) / 1e6
end

local requests = {}

function init(args)
    math.randomseed(1)
    for i, body in ipairs(#bodies > 0 and bodies or {false}) do
        requests[i] = wrk.format(wrk.method, wrk.path, wrk.headers, body or nil)
    end
end

-- A client sends again as soon as it is answered, so the last sending is the moment of the last answer.
function request()
    last = now()
    first = first or last
    return #requests == 1 and requests[1] or requests[math.random(#requests)]
end

local threads = {}

function setup(thread)
    threads[#threads + 1] = thread
end

function done(summary, latency)
    local began, ended = threads[1]:get("first"), threads[1]:get("last")
    local errors = summary.errors
    local failed = string.format(
        '{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}',
        errors.connect, errors.read, errors.write, errors.status, errors.timeout)
    io.write(string.format(
        'JSON {"requests":%d,"began":%.6f,"ended":%.6f,"min":%d,"mean":%f,"p50":%d,"p90":%d,"p95":%d,"p99":%d,"max":%d,"failed":%s}\n',
        summary.requests, began, ended, latency.min, latency.mean, latency:percentile(50), latency:percentile(90),
        latency:percentile(95), latency:percentile(99), latency.max, failed))
end
