// probe is what the tests and the demo run in pods: `serve TEXT` answers every request on port 8080 with the text, `files
// FOLDER` with the file that it names, `get URL` prints what a server answers, `post URL FILE` what it answers to a file. It
// resolves names as the pod is told to in /etc/resolv.conf, with no library between.
package main

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"os/signal"
	"path"
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
		return serve(arguments[1], answerText(arguments[1]))
	case len(arguments) == 2 && arguments[0] == "files":
		return serve(arguments[1], answerFile(arguments[1]))
	case len(arguments) == 2 && arguments[0] == "get":
		return get(arguments[1])
	case len(arguments) == 3 && arguments[0] == "post":
		return post(arguments[1], arguments[2])
	default:
		return fmt.Errorf("expected `serve TEXT`, `files FOLDER`, `get URL` or `post URL FILE`, got %q", arguments)
	}
}

func serve(what string, answer http.HandlerFunc) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Println("serving", what)
	return http.ListenAndServe(":8080", http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		fmt.Println("asked for", request.URL.Path)
		answer(writer, request)
	}))
}

func answerText(text string) http.HandlerFunc {
	return func(writer http.ResponseWriter, _ *http.Request) { fmt.Fprint(writer, text) }
}

// answerFile takes ranges, and gives an entity tag so that a download that is resumed notices a file that has changed.
func answerFile(folder string) http.HandlerFunc {
	files := http.FileServer(http.Dir(folder))
	return func(writer http.ResponseWriter, request *http.Request) {
		file, err := os.Stat(filepath.Join(folder, path.Clean("/"+request.URL.Path)))
		if err == nil && file.Mode().IsRegular() {
			writer.Header().Set("ETag", fmt.Sprintf("\"%x-%x\"", file.Size(), file.ModTime().UnixNano()))
		}
		files.ServeHTTP(writer, request)
	}
}

func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	return show(url, response)
}

func post(url, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Post(url, mime.TypeByExtension(filepath.Ext(name)), file)
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
