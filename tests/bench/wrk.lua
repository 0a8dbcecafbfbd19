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

if #bodies > 1 then
    local requests = {}
    function init(args)
        math.randomseed(1)
        for i, body in ipairs(bodies) do
            requests[i] = wrk.format(wrk.method, wrk.path, wrk.headers, body)
        end
    end
    function request()
        return requests[math.random(#requests)]
    end
end

function done(summary, latency)
    local errors = summary.errors
    local failed = string.format(
        '{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}',
        errors.connect, errors.read, errors.write, errors.status, errors.timeout)
    io.write(string.format(
        'JSON {"requests":%d,"microseconds":%d,"min":%d,"mean":%f,"p50":%d,"p90":%d,"p95":%d,"p99":%d,"max":%d,"failed":%s}\n',
        summary.requests, summary.duration, latency.min, latency.mean, latency:percentile(50), latency:percentile(90),
        latency:percentile(95), latency:percentile(99), latency.max, failed))
end
