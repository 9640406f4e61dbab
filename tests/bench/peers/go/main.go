// Go's mime/multipart behind net/http, as its documentation has it: parts are read as they come.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

var (
	port        = flag.Int("port", 0, "")
	root        = flag.String("root", "", "")
	destination = flag.String("destination", "", "")
	fsync       = flag.Bool("fsync", false, "")
)

type entry struct {
	Name     string `json:"name"`
	Filename string `json:"filename"`
	Size     int64  `json:"size"`
}

type manifest struct {
	Parts []entry `json:"parts"`
}

// Each part of the form goes to take, which says how many bytes it had.
func parts(r *http.Request, take func(index int, part *multipart.Part) (int64, error)) (manifest, error) {
	found := manifest{Parts: []entry{}}
	reader, err := r.MultipartReader()
	if err != nil {
		return found, err
	}
	for {
		part, err := reader.NextPart()
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		size, err := take(len(found.Parts), part)
		if err != nil {
			return found, err
		}
		found.Parts = append(found.Parts, entry{part.FormName(), part.FileName(), size})
	}
}

func freshDirectory() (string, error) {
	name := make([]byte, 16)
	if _, err := rand.Read(name); err != nil {
		return "", err
	}
	directory := filepath.Join(*root, hex.EncodeToString(name))
	return directory, os.Mkdir(directory, 0o777)
}

func create(directory string, index int) (*os.File, error) {
	path := filepath.Join(directory, strconv.Itoa(index))
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

func finish(file *os.File) error {
	if *fsync {
		if err := file.Sync(); err != nil {
			return err
		}
	}
	return file.Close()
}

func syncDirectory(directory string) error {
	if !*fsync {
		return nil
	}
	file, err := os.Open(directory)
	if err != nil {
		return err
	}
	return finish(file)
}

func answer(w http.ResponseWriter, found manifest, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(found)
}

func discard(w http.ResponseWriter, r *http.Request) {
	found, err := parts(r, func(_ int, part *multipart.Part) (int64, error) {
		return io.Copy(io.Discard, part)
	})
	answer(w, found, err)
}

func disk(w http.ResponseWriter, r *http.Request) {
	directory, err := freshDirectory()
	if err != nil {
		answer(w, manifest{}, err)
		return
	}
	found, err := parts(r, func(index int, part *multipart.Part) (int64, error) {
		file, err := create(directory, index)
		if err != nil {
			return 0, err
		}
		size, err := io.Copy(file, part)
		if err != nil {
			_ = file.Close()
			return size, err
		}
		return size, finish(file)
	})
	if err == nil {
		err = syncDirectory(directory)
	}
	answer(w, found, err)
}

// The form again, through a pipe to the destination; what it answers.
func repack(r *http.Request, directory string) (manifest, *http.Response, error) {
	reader, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	var found manifest
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		found, err = parts(r, func(index int, part *multipart.Part) (int64, error) {
			target, err := form.CreatePart(part.Header)
			if err != nil {
				return 0, err
			}
			if directory == "" {
				return io.Copy(target, part)
			}
			file, err := create(directory, index)
			if err != nil {
				return 0, err
			}
			size, err := io.Copy(io.MultiWriter(target, file), part)
			if err != nil {
				_ = file.Close()
				return size, err
			}
			return size, finish(file)
		})
		if err == nil {
			err = form.Close()
		}
		_ = writer.CloseWithError(err)
	}()
	response, err := http.Post(*destination, form.FormDataContentType(), reader)
	_ = reader.CloseWithError(io.ErrClosedPipe)
	<-done
	return found, response, err
}

func relay(w http.ResponseWriter, r *http.Request) {
	_, response, err := repack(r, "")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(response.StatusCode)
	_, _ = io.Copy(w, response.Body)
}

func both(w http.ResponseWriter, r *http.Request) {
	directory, err := freshDirectory()
	if err != nil {
		answer(w, manifest{}, err)
		return
	}
	found, response, err := repack(r, directory)
	if err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if response.StatusCode >= 300 {
			err = fmt.Errorf("the destination answered %d", response.StatusCode)
		}
	}
	answer(w, found, err)
}

func main() {
	flag.Parse()
	http.HandleFunc("/discard", discard)
	http.HandleFunc("/disk", disk)
	http.HandleFunc("/relay", relay)
	http.HandleFunc("/both", both)
	log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", *port), nil))
}
