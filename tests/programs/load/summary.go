package main

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// summary is what is printed as JSON.
type summary struct {
	Sent    int     `json:"sent"`
	Seconds float64 `json:"seconds"`
	// From the first sending to the last answer with 200: what waits at the end is answered after the last is sent.
	Answering float64 `json:"answering"`
	// By status, and what failed without one: "timeout", "refused", "reset", "other".
	Counts map[string]int `json:"counts"`
	// Milliseconds from sending to the last byte, for each key of counts.
	Latency map[string]percentiles `json:"latency"`
	// Milliseconds that requests were sent later than planned: large where the generator cannot keep up.
	Late percentiles `json:"late"`
	// What the first failure without a status said, other than time-outs.
	Example string `json:"example,omitempty"`
}

type percentiles struct {
	Min  float64 `json:"min_ms"`
	Mean float64 `json:"mean_ms"`
	P1   float64 `json:"p1_ms"`
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	Max  float64 `json:"max_ms"`
}

func summaryOf(hits []*vegeta.Result, arrivals []time.Duration, seconds float64) summary {
	latencies := map[string][]time.Duration{}
	out := summary{Sent: len(hits), Seconds: seconds, Counts: map[string]int{}, Latency: map[string]percentiles{}}
	for _, hit := range hits {
		kind := kindOf(hit)
		latencies[kind] = append(latencies[kind], hit.Latency)
		if hit.Code == 0 && kind != "timeout" && out.Example == "" {
			out.Example = hit.Error
		}
	}
	out.Answering = answering(hits).Seconds()
	for kind, times := range latencies {
		out.Counts[kind] = len(times)
		out.Latency[kind] = percentilesOf(times)
	}
	out.Late = percentilesOf(lateness(hits, arrivals))
	return out
}

func kindOf(hit *vegeta.Result) string {
	switch {
	case strings.Contains(hit.Error, "Client.Timeout"), strings.Contains(hit.Error, "deadline exceeded"):
		return "timeout"
	case hit.Code != 0:
		return strconv.Itoa(int(hit.Code))
	case strings.Contains(hit.Error, "connection refused"):
		return "refused"
	}
	for _, words := range []string{"reset", "EOF", "broken pipe", "server closed idle connection"} {
		if strings.Contains(hit.Error, words) {
			return "reset"
		}
	}
	return "other"
}

// sendTimes are counted from the first.
func sendTimes(hits []*vegeta.Result) []time.Duration {
	var times []time.Duration
	for _, hit := range hits {
		times = append(times, time.Duration(hit.Timestamp.UnixNano()))
	}
	slices.Sort(times)
	for i := len(times) - 1; i >= 0; i-- {
		times[i] -= times[0]
	}
	return times
}

func answering(hits []*vegeta.Result) time.Duration {
	var first, last time.Time
	for _, hit := range hits {
		if first.IsZero() || hit.Timestamp.Before(first) {
			first = hit.Timestamp
		}
		if hit.Code == http.StatusOK && hit.End().After(last) {
			last = hit.End()
		}
	}
	return max(0, last.Sub(first))
}

// lateness compares with the timetable, which starts at an unknown moment: the best-kept appointment counts as punctual.
// Without one nothing is late.
func lateness(hits []*vegeta.Result, arrivals []time.Duration) []time.Duration {
	if len(arrivals) == 0 {
		return nil
	}
	var late []time.Duration
	for _, hit := range hits {
		late = append(late, time.Duration(hit.Timestamp.UnixNano())-arrivals[hit.Seq])
	}
	if len(late) > 0 {
		punctual := slices.Min(late)
		for i := range late {
			late[i] -= punctual
		}
	}
	return late
}

func percentilesOf(times []time.Duration) percentiles {
	if len(times) == 0 {
		return percentiles{}
	}
	slices.Sort(times)
	var total time.Duration
	for _, t := range times {
		total += t
	}
	at := func(share float64) float64 {
		rank := int(math.Ceil(share*float64(len(times)))) - 1
		return milliseconds(times[max(0, rank)])
	}
	mean := milliseconds(total / time.Duration(len(times)))
	return percentiles{at(0), mean, at(0.01), at(0.5), at(0.9), at(0.99), at(1)}
}

func milliseconds(t time.Duration) float64 {
	return float64(t.Microseconds()) / 1000
}
