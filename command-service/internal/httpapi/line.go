package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// lineError says what is wrong with the form of a line; what is wrong with an instant or a key has its own error.
type lineError struct {
	status int
	rule   string
}

func (e *lineError) Error() string {
	return "the line is not accepted: " + e.rule + `; an example of one that is: {"event_timestamp":"2009-09-28T19:03:12Z"}`
}

func badLine(format string, args ...any) *lineError {
	return &lineError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// wanted is what a line asks for. Nil stands for a member that is not there.
type wanted struct{ instant, id []byte }

// decodeLine reads one line of the stream. The result may point into raw.
func decodeLine(raw []byte) (wanted, error) {
	if w, ok := decodePlain(raw); ok {
		return w, nil
	}
	return decodeAny(raw)
}

// decodePlain reads the usual spellings, at a tenth of the cost: a string, or an object of strings, none of them with
// an escape or a character outside ASCII. Whatever it does not take goes the general way, which has the last word.
func decodePlain(raw []byte) (wanted, bool) {
	var w wanted
	rest := skip(raw)
	if len(rest) == 0 {
		return w, false
	}
	if rest[0] == '"' {
		text, rest, ok := plainString(rest)
		w.instant = text
		return w, ok && len(skip(rest)) == 0
	}
	if rest[0] != '{' {
		return w, false
	}
	rest = skip(rest[1:])
	for first := true; ; first = false {
		if first && len(rest) > 0 && rest[0] == '}' {
			break
		}
		name, after, ok := plainString(rest)
		if after = skip(after); !ok || len(after) == 0 || after[0] != ':' {
			return w, false
		}
		value, after, ok := plainString(skip(after[1:]))
		if after = skip(after); !ok || len(after) == 0 {
			return w, false
		}
		switch {
		case string(name) == "event_timestamp" && w.instant == nil:
			w.instant = value
		case string(name) == "id" && w.id == nil:
			w.id = value
		default:
			return w, false
		}
		rest = after
		if rest[0] == '}' {
			break
		}
		if rest[0] != ',' {
			return w, false
		}
		rest = skip(rest[1:])
	}
	return w, len(skip(rest[1:])) == 0
}

func skip(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

// plainString reads a JSON string that means itself. It is never nil where ok.
func plainString(b []byte) (text, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	for i, c := range b[1:] {
		if c == '"' {
			return b[1 : i+1], b[i+2:], true
		}
		if c == '\\' || c < ' ' || c > '~' {
			break
		}
	}
	return nil, nil, false
}

// decodeAny reads the line as any JSON, and says what is wrong with it.
func decodeAny(raw []byte) (wanted, error) {
	var w wanted
	if len(bytes.TrimSpace(raw)) == 0 {
		return w, badLine("it is empty, and {} is what stamps the present instant")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	broken := func(err error) (wanted, error) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return wanted{}, badLine("it is no JSON: it ends in the middle")
		}
		return wanted{}, badLine("it is no JSON: %v", err)
	}
	start, err := d.Token()
	if err != nil {
		return broken(err)
	}
	switch start := start.(type) {
	case string:
		w.instant = []byte(start)
	case json.Delim:
		if start != '{' {
			return wanted{}, badLine("it is a JSON array, and an object or a string is wanted")
		}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return broken(err)
			}
			value, err := d.Token()
			if err != nil {
				return broken(err)
			}
			into := &w.instant
			switch name {
			case "event_timestamp":
			case "id":
				into = &w.id
			default:
				return wanted{}, badLine("it has a member %.64q, and only event_timestamp and id are known", name)
			}
			text, ok := value.(string)
			if !ok {
				return wanted{}, badLine("%s is no string", name)
			}
			if *into != nil {
				return wanted{}, badLine("%s is there twice", name)
			}
			*into = append([]byte{}, text...)
		}
		if _, err := d.Token(); err != nil {
			return broken(err)
		}
	default:
		return wanted{}, badLine("it is neither a JSON object nor a string")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return wanted{}, badLine("something stands behind its JSON value")
	}
	return w, nil
}
