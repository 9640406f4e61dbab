// Go's mime/multipart and net/http, through a pipe and so chunked.
// Reads {url, uploads} from standard input, prints [[status, body], ...].
package main

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"os"
)

type part struct {
	Name     string
	Filename *string
	Data     []byte
}

type large struct {
	Name     string
	Filename string
	Block    []byte
	Count    uint32
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func send(url string, fill func(*multipart.Writer) error) []any {
	reader, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	go func() {
		err := fill(form)
		if err == nil {
			err = form.Close()
		}
		writer.CloseWithError(err)
	}()
	answer, err := http.Post(url, form.FormDataContentType(), reader)
	check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(err)
	return []any{answer.StatusCode, string(text)}
}

func fillWith(parts []part) func(*multipart.Writer) error {
	return func(form *multipart.Writer) error {
		for _, each := range parts {
			var target io.Writer
			var err error
			if each.Filename == nil {
				target, err = form.CreateFormField(each.Name)
			} else {
				target, err = form.CreateFormFile(each.Name, *each.Filename)
			}
			if err != nil {
				return err
			}
			if _, err = target.Write(each.Data); err != nil {
				return err
			}
		}
		return nil
	}
}

func fillWithLarge(given large) func(*multipart.Writer) error {
	return func(form *multipart.Writer) error {
		target, err := form.CreateFormFile(given.Name, given.Filename)
		for number := uint32(0); err == nil && number < given.Count; number++ {
			binary.BigEndian.PutUint32(given.Block, number)
			_, err = target.Write(given.Block)
		}
		return err
	}
}

func main() {
	var given struct {
		URL     string
		Uploads []json.RawMessage
	}
	check(json.NewDecoder(os.Stdin).Decode(&given))
	answers := []any{}
	for _, raw := range given.Uploads {
		var parts []part
		if json.Unmarshal(raw, &parts) == nil {
			answers = append(answers, send(given.URL, fillWith(parts)))
			continue
		}
		var one large
		check(json.Unmarshal(raw, &one))
		answers = append(answers, send(given.URL, fillWithLarge(one)))
	}
	check(json.NewEncoder(os.Stdout).Encode(answers))
}
