// Package endpoint reads the endpoints in a request, one or a list, as JSON or as YAML, and writes the document of each
// that the log keeps. Its errors name everything that is wrong with a request.
//
// A document is complete, so that whoever reads the log needs none of the defaults here. Members that this release does
// not know stay in it as they came: a later release, or a tool of the user's, may know them.
//
// The encoding of a record, and which values are accepted, are left to shared/event.
package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/ticket"
)

// Bounds of a request.
const (
	mostItems       = limits.Endpoints
	longestDocument = 63 << 10 // bytes: with its ids and its sender a record stays below 64 KiB
	longestName     = 200      // characters of a name that is made of a URL
)

// Item is one endpoint of a request.
type Item struct {
	ID       string // the item's own Idempotency-Key; empty where it has none
	Document []byte // the endpoint, complete, as the log keeps it
}

// InvalidError says all that is wrong with a request. In a list, each path begins with the item's place, counted from 0:
// "[2].interval".
type InvalidError struct{ Fields []event.FieldError }

func (e *InvalidError) Error() string {
	if len(e.Fields) == 1 {
		return e.Fields[0].Error()
	}
	return fmt.Sprintf("%d members are not accepted, the first: %s", len(e.Fields), e.Fields[0])
}

// Of returns the id of the endpoint that the command with that ticket makes, so that a retry makes no second one.
func Of(command uuid.UUID) uuid.UUID { return ticket.Derived("tidemark endpoint 1", command.String()) }

// ParseID reads the id of an endpoint. The error is an *InvalidError.
func ParseID(text string) (uuid.UUID, error) {
	id, err := ticket.Parse(text)
	if err != nil {
		return uuid.Nil, invalid([]event.FieldError{{Path: "id", Message: fmt.Sprintf("expected the endpoint's id, a UUID, found %.64q", text)}})
	}
	return id, nil
}

// Parse reads a body of JSON: one endpoint, or a list of up to 1,000. The error is an *InvalidError.
func Parse(body []byte) (items []Item, list bool, err error) {
	raw, err := sound(body)
	if err != nil {
		return nil, false, err
	}
	if raw[0] != '[' {
		item, wrong := parseItem(raw)
		return []Item{item}, false, invalid(wrong)
	}
	var raws []json.RawMessage
	if err := json.Unmarshal(raw, &raws); err != nil { // sound has read it
		return nil, true, invalid([]event.FieldError{{Message: err.Error()}})
	}
	if len(raws) < 1 || len(raws) > mostItems {
		return nil, true, invalid([]event.FieldError{{Message: fmt.Sprintf("expected 1 to %d endpoints, found %d", mostItems, len(raws))}})
	}
	items = make([]Item, len(raws))
	var wrong []event.FieldError
	for i, raw := range raws {
		var of []event.FieldError
		items[i], of = parseItem(raw)
		for _, e := range of {
			wrong = append(wrong, inItem(Place(i), e))
		}
	}
	return items, true, invalid(wrong)
}

// ParsePut reads a body of JSON that says how the endpoint with that id shall be. The error is an *InvalidError.
func ParsePut(body []byte, id uuid.UUID) (document []byte, err error) {
	raw, err := sound(body)
	if err != nil {
		return nil, err
	}
	item, wrong := parseItem(raw)
	if item.ID != "" && !strings.EqualFold(item.ID, id.String()) {
		wrong = append(wrong, event.FieldError{Path: "id", Message: "expected the id in the path, or none"})
	}
	return item.Document, invalid(wrong)
}

// Place is the path of an item of a list.
func Place(i int) string { return "[" + strconv.Itoa(i) + "]" }

// inItem puts the place of an item before the path of an error in it.
func inItem(place string, e event.FieldError) event.FieldError {
	if e.Path != "" && e.Path[0] != '[' {
		place += "."
	}
	return event.FieldError{Path: place + e.Path, Message: e.Message}
}

func invalid(wrong []event.FieldError) error {
	if len(wrong) == 0 {
		return nil
	}
	return &InvalidError{wrong}
}

// sound returns the one JSON value that body is.
func sound(body []byte) (json.RawMessage, error) {
	fail := func(message string) (json.RawMessage, error) {
		return nil, invalid([]event.FieldError{{Message: message}})
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return fail("expected an endpoint or a list of endpoints, found nothing")
	}
	if !utf8.Valid(body) {
		return fail("expected UTF-8, found other bytes")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil {
		return fail("expected JSON: " + err.Error())
	}
	return raw, nil
}

// known are the members of an endpoint in the order of a document, and what stands for one that is left out.
var known = []struct{ name, otherwise string }{
	{"url", ""}, {"name", ""}, {"group", `""`}, {"tags", "[]"}, {"interval", `"1m"`}, {"enabled", "true"},
}

// parseItem completes and checks one endpoint.
func parseItem(raw json.RawMessage) (Item, []event.FieldError) {
	if len(raw) > longestDocument { // before it costs more
		return Item{}, tooLong(len(raw))
	}
	members, ok := membersOf(raw)
	if !ok {
		_, wrong := event.ParseEndpoint(raw)
		return Item{}, wrong
	}
	var item Item
	var wrong []event.FieldError
	written := []byte{'{'}
	for _, k := range known {
		values := members.take(k.name)
		if k.name == "name" && values == nil {
			values = []json.RawMessage{quoted(nameOf(written))}
		}
		if values == nil && k.otherwise != "" {
			values = []json.RawMessage{json.RawMessage(k.otherwise)}
		}
		for _, v := range values {
			written = appendMember(written, k.name, v)
		}
	}
	for i, v := range members.take("id") {
		if i > 0 || json.Unmarshal(v, &item.ID) != nil || item.ID == "" {
			wrong = append(wrong, event.FieldError{Path: "id", Message: "expected one text that is an Idempotency-Key; leave it out to have a new ticket"})
		}
	}
	var others []byte
	for _, m := range members.list {
		others = appendMember(others, m.name, m.value)
	}
	// All members are looked at together, so that everything wrong is said at once; then the known ones are written in
	// their one spelling.
	parsed, of := event.ParseEndpoint(closed(written, others))
	if wrong = append(wrong, of...); wrong != nil {
		return item, wrong
	}
	plain := event.AppendEndpoint(nil, parsed)
	item.Document = closed(plain[:len(plain)-1], others)
	if n := len(item.Document); n > longestDocument {
		return item, tooLong(n)
	}
	return item, nil
}

func tooLong(n int) []event.FieldError {
	return []event.FieldError{{Message: fmt.Sprintf("expected at most %d bytes, found %d", longestDocument, n)}}
}

// nameOf is the name of an endpoint that came without one: host and path of the URL in the document so far. What stands
// for a URL that is none never reaches the log.
func nameOf(document []byte) string {
	var so struct {
		URL string `json:"url"`
	}
	_ = json.Unmarshal(append(bytes.Clone(document), '}'), &so) // the URL may be no text
	u, err := url.Parse(so.URL)
	if err != nil || u.Host == "" {
		return "unnamed"
	}
	name := []rune(u.Host + strings.TrimSuffix(u.EscapedPath(), "/"))
	return string(name[:min(len(name), longestName)])
}

// ReadRedriven reads the value of a record that takes the place of a dead letter: an endpoint command with nothing left out but
// its command_id, which is uuid.Nil where the payload has none that is a ticket. Who sends it is sentBy, whatever the
// payload says. The error names every path that is wrong.
func ReadRedriven(payload []byte, sentBy string) (event.EndpointCommand, error) {
	raw, err := sound(payload)
	if err != nil {
		return event.EndpointCommand{}, err
	}
	members, ok := membersOf(raw)
	if !ok {
		_, err := event.DecodeEndpointCommand(raw)
		return event.EndpointCommand{}, err
	}
	var id uuid.UUID
	for _, v := range members.take("command_id") {
		var text string
		_ = json.Unmarshal(v, &text) // what is no text is no ticket either
		id, _ = ticket.Parse(text)
	}
	members.take("sent_by")
	value := appendMember([]byte{'{'}, "command_id", quoted(id.String()))
	value = appendMember(value, "sent_by", quoted(sentBy))
	for _, m := range members.list {
		value = appendMember(value, m.name, m.value)
	}
	c, err := event.DecodeEndpointCommand(append(value, '}'))
	if err == nil && len(c.Document) > longestDocument {
		err = fmt.Errorf("endpoint: expected at most %d bytes, found %d", longestDocument, len(c.Document))
	}
	return c, err
}

// Canonical is a document in which nothing depends on how it was written: what an Idempotency-Key is bound to.
func Canonical(document []byte) string {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return string(document) // it was parsed before
	}
	text, err := json.Marshal(value) // sorts the members
	if err != nil {
		return string(document)
	}
	return string(text)
}

// objectMembers are the members of an object that were not taken yet, in the order in which they came.
type objectMembers struct{ list []member }

type member struct {
	name  string
	value json.RawMessage
}

// membersOf splits sound JSON; ok is false where it is no object.
func membersOf(raw json.RawMessage) (members objectMembers, ok bool) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return members, false
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return members, false
		}
		m := member{}
		m.name, _ = name.(string)
		if err := d.Decode(&m.value); err != nil {
			return members, false
		}
		members.list = append(members.list, m)
	}
	_, err := d.Token()
	return members, err == nil || errors.Is(err, io.EOF)
}

// take removes the members of that name and returns their values; nil where there are none.
func (m *objectMembers) take(name string) (values []json.RawMessage) {
	left := m.list[:0]
	for _, one := range m.list {
		if one.name == name {
			values = append(values, one.value)
		} else {
			left = append(left, one)
		}
	}
	m.list = left
	return values
}

func appendMember(dst []byte, name string, value json.RawMessage) []byte {
	if len(dst) > 0 && dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	return append(append(append(dst, quoted(name)...), ':'), value...)
}

// closed is an object that was begun, with more members behind its own.
func closed(begun, more []byte) []byte {
	out := bytes.Clone(begun)
	if len(more) > 0 && len(begun) > 1 {
		out = append(out, ',')
	}
	return append(append(out, more...), '}')
}

func quoted(text string) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a text always marshals
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
