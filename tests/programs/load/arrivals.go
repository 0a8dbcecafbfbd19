package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// arrivalsOf lists when requests are due, from the start of the run.
func arrivalsOf(distribution string, rate, seconds float64, seed uint64) ([]time.Duration, error) {
	random := rand.New(rand.NewPCG(seed, 0))
	var gap func() float64
	switch distribution {
	case "uniform":
		gap = func() float64 { return 1 / rate }
	case "poisson":
		gap = func() float64 { return random.ExpFloat64() / rate }
	default:
		return nil, fmt.Errorf("there is no distribution %q; known are uniform and poisson", distribution)
	}
	var arrivals []time.Duration
	for at := gap(); at < seconds; at += gap() {
		arrivals = append(arrivals, time.Duration(at*float64(time.Second)))
	}
	return arrivals, nil
}

// timetable is a vegeta.Pacer that sends at given times.
type timetable []time.Duration

// Pace says how long to wait before the next request.
func (due timetable) Pace(elapsed time.Duration, sent uint64) (time.Duration, bool) {
	if sent >= uint64(len(due)) {
		return 0, true
	}
	return max(0, due[sent]-elapsed), false
}

// Rate is asked for by reports that are not made here.
func (due timetable) Rate(time.Duration) float64 { return 0 }

func (due timetable) String() string { return fmt.Sprintf("%d arrivals", len(due)) }
