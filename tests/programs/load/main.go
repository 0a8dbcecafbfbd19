// Load sends one request over and over at a given rate, whether or not the answers keep up, and says what came back; or, with
// -workers, as fast as so many clients are answered.
//
// Vegeta does the work; what is ours is the choice of arrival times and the summary. Arrivals are uniform or Poisson, the
// latter from a seed, so that two runs meet the same arrivals.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// plan says what to send and when.
type plan struct {
	target         vegeta.Target
	arrivals       []time.Duration
	timeout        time.Duration
	maxConnections int
	// With clients that wait for their answers there are no arrivals.
	workers uint64
	lasts   time.Duration
}

func main() {
	headers := headerFlag{}
	url := flag.String("url", "", "where to send to")
	body := flag.String("body", "", "file with the body; none: GET")
	rate := flag.Float64("rate", 100, "requests per second")
	seconds := flag.Float64("seconds", 5, "for how long")
	distribution := flag.String("distribution", "poisson", "uniform or poisson")
	seed := flag.Uint64("seed", 1, "of the Poisson arrivals")
	timeout := flag.Duration("timeout", time.Second, "a client gives up after this")
	maxConnections := flag.Int("max-connections", 0, "open at once; 0: as many as it takes")
	workers := flag.Uint64("workers", 0, "clients that each have one request in flight, whatever the rate; 0: the rate counts")
	sent := flag.String("arrivals", "", "file for the times of sending: seconds since the first, one a line")
	flag.Var(headers, "header", "name: value; may be repeated")
	flag.Parse()

	target, err := targetOf(*url, *body, http.Header(headers))
	exitOn(err)
	var arrivals []time.Duration
	if *workers == 0 {
		arrivals, err = arrivalsOf(*distribution, *rate, *seconds, *seed)
		exitOn(err)
	}
	lasts := time.Duration(*seconds * float64(time.Second))
	hits := run(plan{target, arrivals, *timeout, *maxConnections, *workers, lasts})
	if *sent != "" {
		exitOn(os.WriteFile(*sent, []byte(timesOf(hits)), 0o644))
	}
	exitOn(json.NewEncoder(os.Stdout).Encode(summaryOf(hits, arrivals, *seconds)))
}

func targetOf(url, bodyFile string, headers http.Header) (vegeta.Target, error) {
	target := vegeta.Target{Method: http.MethodGet, URL: url, Header: headers}
	if bodyFile == "" {
		return target, nil
	}
	body, err := os.ReadFile(bodyFile)
	target.Method, target.Body = http.MethodPost, body
	return target, err
}

// run sends the requests and waits until each is answered or given up.
func run(plan plan) []*vegeta.Result {
	options := []func(*vegeta.Attacker){
		vegeta.Timeout(plan.timeout),
		vegeta.MaxConnections(plan.maxConnections),
		// What comes back is not looked at, only read.
		vegeta.MaxBody(0),
		vegeta.HTTP2(false),
	}
	var pacer vegeta.Pacer = timetable(plan.arrivals)
	if plan.workers > 0 {
		options = append(options, vegeta.Workers(plan.workers), vegeta.MaxWorkers(plan.workers), vegeta.Connections(int(plan.workers)))
		// No pause between requests.
		pacer = vegeta.ConstantPacer{}
	} else {
		plan.lasts = 0
	}
	attacker := vegeta.NewAttacker(options...)
	hits := make([]*vegeta.Result, 0, len(plan.arrivals))
	for hit := range attacker.Attack(vegeta.NewStaticTargeter(plan.target), pacer, plan.lasts, "") {
		hits = append(hits, hit)
	}
	return hits
}

// timesOf lists when each request was really sent.
func timesOf(hits []*vegeta.Result) string {
	var lines strings.Builder
	for _, sent := range sendTimes(hits) {
		lines.WriteString(strconv.FormatFloat(sent.Seconds(), 'f', 6, 64))
		lines.WriteByte('\n')
	}
	return lines.String()
}

type headerFlag http.Header

func (headers headerFlag) String() string { return "" }

func (headers headerFlag) Set(line string) error {
	name, value, found := strings.Cut(line, ":")
	if !found {
		return fmt.Errorf("expected name: value, got %q", line)
	}
	http.Header(headers).Add(name, strings.TrimSpace(value))
	return nil
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
