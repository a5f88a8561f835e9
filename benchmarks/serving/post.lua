-- wrk: one question, again and again; the result as a line of JSON.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model": "bench", "max_tokens": 256, "messages": [{"role": "user", "content": "May a patient with Kasti take 45 mg of Velmo?"}]}'

-- With a pause neither core is ever full, so that the latency is not that of the operating system's scheduler.
local pause = tonumber(os.getenv("PAUSE_MS") or "0")
if pause > 0 then
  function delay()
    return pause
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  local lost = e.connect + e.read + e.write + e.timeout
  io.write(string.format('{"requests": %d, "seconds": %.3f, "p50_ms": %.4f, "p99_ms": %.4f, "not_200": %d, "lost": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.status, lost))
end
