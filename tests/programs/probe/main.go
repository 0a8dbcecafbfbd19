// probe is what the tests of the cluster itself run in pods: `serve TEXT` answers every request on port 8080 with the text,
// `get URL` prints what a server answers, `post URL FILE` what it answers to a file. It resolves names as the pod is told to in /etc/resolv.conf, with no library between.
package main

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
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
	switch {
	case len(arguments) == 2 && arguments[0] == "serve":
		return serve(arguments[1])
	case len(arguments) == 2 && arguments[0] == "get":
		return get(arguments[1])
	case len(arguments) == 3 && arguments[0] == "post":
		return post(arguments[1], arguments[2])
	default:
		return fmt.Errorf("expected `serve TEXT`, `get URL` or `post URL FILE`, got %q", arguments)
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
	return show(url, response)
}

func post(url, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Post(url, mime.TypeByExtension(filepath.Ext(path)), file)
	if err != nil {
		return err
	}
	return show(url, response)
}

func show(url string, response *http.Response) error {
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	_, err := io.Copy(os.Stdout, response.Body)
	return err
}
