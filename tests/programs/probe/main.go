// probe is what the tests of the cluster itself run in pods: `serve TEXT` answers every request on port 8080 with the text,
// `get URL` prints what a server answers. It resolves names as the pod is told to in /etc/resolv.conf, with no library between.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("expected `serve TEXT` or `get URL`, got %q", arguments)
	}
	switch verb, object := arguments[0], arguments[1]; verb {
	case "serve":
		return serve(object)
	case "get":
		return get(object)
	default:
		return fmt.Errorf("expected `serve` or `get`, got %q", verb)
	}
}

func serve(text string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Println("serving", text)
	return http.ListenAndServe(":8080", http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		fmt.Println("asked for", request.URL.Path)
		fmt.Fprint(writer, text)
	}))
}

func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
