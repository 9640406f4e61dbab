// Go's mime/multipart: reads bodies as JSON, prints what it makes of the heads of their parts.
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

func read(given body) []part {
	parts := []part{}
	_, params, err := mime.ParseMediaType(given.ContentType)
	if err != nil {
		return nil
	}
	reader := multipart.NewReader(bytes.NewReader(given.Data), params["boundary"])
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
	answers := [][]part{}
	for _, one := range bodies {
		answers = append(answers, read(one))
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
