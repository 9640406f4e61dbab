// Go's mime/multipart: reads bodies as JSON, prints what it makes of their boundary and the heads of their parts.
package main

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"os"
)

type body struct {
	ContentType string `json:"content_type"`
	Data        []byte `json:"data"`
}

// Text may be anything but UTF-8, so it goes as bytes.
type part struct {
	Name     []byte `json:"name"`
	Filename []byte `json:"filename"`
}

type answer struct {
	Boundary []byte `json:"boundary"`
	Parts    []part `json:"parts"`
}

func read(given body) answer {
	_, params, err := mime.ParseMediaType(given.ContentType)
	boundary, ok := params["boundary"]
	if err != nil || !ok {
		return answer{}
	}
	return answer{[]byte(boundary), parts(given, boundary)}
}

func parts(given body, boundary string) []part {
	parts := []part{}
	reader := multipart.NewReader(bytes.NewReader(given.Data), boundary)
	for {
		next, err := reader.NextRawPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			return nil
		}
		var found part
		if _, params, err := mime.ParseMediaType(next.Header.Get("Content-Disposition")); err == nil {
			if name, ok := params["name"]; ok {
				found.Name = []byte(name)
			}
			if filename, ok := params["filename"]; ok {
				found.Filename = []byte(filename)
			}
		}
		parts = append(parts, found)
	}
}

func main() {
	var bodies []body
	if err := json.NewDecoder(os.Stdin).Decode(&bodies); err != nil {
		panic(err)
	}
	answers := []answer{}
	for _, one := range bodies {
		answers = append(answers, read(one))
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
