package event

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/ticket"
)

// EndpointKind is what an EndpointCommand does.
type EndpointKind string

// The kinds.
const (
	EndpointPut    EndpointKind = "put"    // the endpoint is as the command says, whether it was there before or not
	EndpointDelete EndpointKind = "delete" // it is no more
)

// EndpointCommand puts or deletes one endpoint; its topic is topic.EndpointCommand. The record's key is EndpointID.
type EndpointCommand struct {
	CommandID  uuid.UUID // the ticket
	EndpointID uuid.UUID
	Kind       EndpointKind
	SentBy     string   // name of the API key; empty without keys
	Endpoint   Endpoint // of a put: what this release understands of Document
	Document   []byte   // of a put: the member "endpoint" as it came, one JSON object; nil in a delete
}

// Endpoint is a URL that is to be checked, as its user configured it.
type Endpoint struct {
	URL      string        // absolute, http or https, at most 2,048 bytes
	Name     string        // 1 to 200 characters
	Group    string        // at most 100 characters; may be empty
	Tags     []string      // at most 20, of 1 to 50 characters each; nil where there are none
	Interval time.Duration // between two checks: whole seconds, 5 s to 24 h
	Enabled  bool          // whether it is to be checked
}

// Bounds of an endpoint.
const (
	longestURL          = 2048 // bytes
	longestEndpointName = 200  // characters, as the lengths that follow
	longestGroup        = 100
	mostTags            = 20
	longestTag          = 50
	shortestInterval    = 5 * time.Second
	longestInterval     = 24 * time.Hour
	documentLevels      = 32 // of nesting
)

// AppendEndpointCommand appends the record value of c:
// {"command_id":"<uuid>","endpoint_id":"<uuid>","kind":"put","sent_by":"…","endpoint":<Document>}, without endpoint where
// it is a delete. Document is written as it is; c.Endpoint is not looked at.
func AppendEndpointCommand(dst []byte, c EndpointCommand) []byte {
	dst = append(append(dst, `{"command_id":"`...), c.CommandID.String()...)
	dst = append(append(dst, `","endpoint_id":"`...), c.EndpointID.String()...)
	dst = append(append(dst, `","kind":"`...), c.Kind...)
	dst = appendJSON(append(dst, `","sent_by":`...), c.SentBy)
	if c.Kind == EndpointPut {
		dst = append(append(dst, `,"endpoint":`...), c.Document...)
	}
	return append(dst, '}')
}

// AppendEndpoint appends the document of e:
// {"url":"…","name":"…","group":"…","tags":["…"],"interval":"30s","enabled":true}.
func AppendEndpoint(dst []byte, e Endpoint) []byte {
	if e.Tags == nil {
		e.Tags = []string{}
	}
	return appendJSON(dst, struct {
		URL      string   `json:"url"`
		Name     string   `json:"name"`
		Group    string   `json:"group"`
		Tags     []string `json:"tags"`
		Interval string   `json:"interval"`
		Enabled  bool     `json:"enabled"`
	}{e.URL, e.Name, e.Group, e.Tags, shortDuration(e.Interval), e.Enabled})
}

// shortDuration prints 5m where Duration.String prints 5m0s.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// DecodeEndpointCommand reads a record value. Members that it does not know are ignored, so that a newer producer may
// add some; those of the endpoint stay in Document, which points into value. An error names the path of every member
// that is wrong and what was expected there: such a record can never be read, so it is a dead letter.
func DecodeEndpointCommand(value []byte) (EndpointCommand, error) {
	if value == nil {
		return EndpointCommand{}, errors.New("the record has no value")
	}
	var command, endpoint, kind, sentBy, document []byte
	broken := members(value, documentLevels+1, func(name, value []byte) {
		switch string(name) {
		case "command_id":
			command = value
		case "endpoint_id":
			endpoint = value
		case "kind":
			kind = value
		case "sent_by":
			sentBy = value
		case "endpoint":
			document = value
		}
	})
	if broken != nil {
		return EndpointCommand{}, *broken
	}
	var c EndpointCommand
	var wrong fieldErrors
	fail := func(path, message string) { wrong = append(wrong, FieldError{path, message}) }
	var ok bool
	if c.CommandID, ok = uuidOf(command); !ok {
		fail("command_id", found("a UUID", command))
	}
	if c.EndpointID, ok = uuidOf(endpoint); !ok {
		fail("endpoint_id", found("a UUID", endpoint))
	}
	if c.SentBy, ok = textOf(sentBy); !ok {
		fail("sent_by", expected("a text", sentBy))
	}
	switch text, _ := textOf(kind); EndpointKind(text) {
	case EndpointDelete:
		c.Kind = EndpointDelete
	case EndpointPut:
		c.Kind, c.Document = EndpointPut, document
		var of []FieldError
		if len(document) == 0 {
			of = []FieldError{{"", expected("a JSON object", nil)}}
		} else {
			c.Endpoint, of = ParseEndpoint(document)
		}
		for _, e := range of {
			if e.Path != "" {
				e.Path = "." + e.Path
			}
			fail("endpoint"+e.Path, e.Message)
		}
	default:
		fail("kind", found(`"put" or "delete"`, kind))
	}
	if wrong != nil {
		return EndpointCommand{}, wrong
	}
	return c, nil
}

// ParseEndpoint reads the document of an endpoint, in which every member of Endpoint must stand, and returns all that is
// wrong with it. Members that it does not know are ignored.
func ParseEndpoint(document []byte) (Endpoint, []FieldError) {
	var at [6][]byte
	var twice [6]bool
	names := [6]string{"url", "name", "group", "tags", "interval", "enabled"}
	var wrong []FieldError
	broken := members(document, documentLevels, func(name, value []byte) {
		for i := range names {
			if string(name) != names[i] {
				continue
			}
			if at[i] != nil && !twice[i] {
				twice[i] = true
				wrong = append(wrong, FieldError{names[i], "expected once, found twice"})
			}
			at[i] = value
		}
	})
	if broken != nil {
		return Endpoint{}, []FieldError{*broken}
	}
	var e Endpoint
	check := func(path, message string) {
		if message != "" {
			wrong = append(wrong, FieldError{path, message})
		}
	}
	var message string
	e.URL, message = urlOf(at[0])
	check("url", message)
	e.Name, message = shortText(at[1], 1, longestEndpointName)
	check("name", message)
	e.Group, message = shortText(at[2], 0, longestGroup)
	check("group", message)
	var of []FieldError
	e.Tags, of = tagsOf(at[3])
	wrong = append(wrong, of...)
	e.Interval, message = intervalOf(at[4])
	check("interval", message)
	if text := string(at[5]); text == "true" || text == "false" {
		e.Enabled = text == "true"
	} else {
		check("enabled", expected("true or false", at[5]))
	}
	if wrong != nil {
		return Endpoint{}, wrong
	}
	return e, nil
}

// found is expected for a value of the right kind: it shows the text.
func found(what string, value []byte) string {
	text, ok := textOf(value)
	if !ok {
		return expected(what, value)
	}
	return "expected " + what + ", found " + strconv.Quote(shortened(text))
}

func shortened(text string) string {
	if len(text) > longestName {
		return strings.ToValidUTF8(text[:longestName], "") + "…"
	}
	return text
}

func uuidOf(value []byte) (uuid.UUID, bool) {
	text, ok := textOf(value)
	if !ok {
		return uuid.Nil, false
	}
	id, err := ticket.Parse(text)
	return id, err == nil
}

func urlOf(value []byte) (text, message string) {
	const what = "an absolute http or https URL with a host"
	text, ok := textOf(value)
	if !ok {
		return "", expected(what, value)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "", found(what, value)
	case len(text) > longestURL:
		return "", fmt.Sprintf("expected at most %d bytes, found %d", longestURL, len(text))
	}
	return text, ""
}

func shortText(value []byte, least, most int) (text, message string) {
	text, ok := textOf(value)
	if !ok {
		return "", expected("a text", value)
	}
	switch n := utf8.RuneCountInString(text); {
	case n < least:
		return "", "expected a text, found an empty one"
	case n > most:
		return "", fmt.Sprintf("expected at most %d characters, found %d", most, n)
	}
	return text, ""
}

func tagsOf(value []byte) ([]string, []FieldError) {
	if len(value) == 0 || value[0] != '[' {
		return nil, []FieldError{{"tags", expected("a list of texts", value)}}
	}
	var tags []string
	var wrong []FieldError
	n := 0
	s := scanner{text: value, levels: documentLevels}
	_ = s.list(func(i int, value []byte) { // it was scanned before
		if n = i + 1; n > mostTags {
			return
		}
		tag, message := shortText(value, 1, longestTag)
		if message != "" {
			wrong = append(wrong, FieldError{"tags[" + strconv.Itoa(i) + "]", message})
		}
		tags = append(tags, tag)
	})
	if n > mostTags {
		wrong = append(wrong, FieldError{"tags", fmt.Sprintf("expected at most %d, found %d", mostTags, n)})
	}
	return tags, wrong
}

func intervalOf(value []byte) (time.Duration, string) {
	const what = "a duration such as 30s"
	text, ok := textOf(value)
	if !ok {
		return 0, expected(what, value)
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, found(what, value)
	case d < shortestInterval || d > longestInterval || d%time.Second != 0:
		return 0, found("whole seconds from 5s to 24h", value)
	}
	return d, ""
}
