package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// FieldError says what is wrong with one member of a JSON value.
type FieldError struct {
	Path    string // of the member, such as "endpoint.tags[2]"; empty for the value itself
	Message string // what was expected and what was found
}

func (e FieldError) Error() string {
	if e.Path == "" {
		return "the value: " + e.Message
	}
	return e.Path + ": " + e.Message
}

// fieldErrors are all that is wrong with a value. Their text depends on the value alone, so a rebuild gives the same.
type fieldErrors []FieldError

func (e fieldErrors) Error() string {
	texts := make([]string, len(e))
	for i := range e {
		texts[i] = e[i].Error()
	}
	return strings.Join(texts, "; ")
}

// expected words a FieldError's message about a JSON value. Nothing stands for a member that is not there.
func expected(what string, value []byte) string {
	return "expected " + what + ", found " + kindOf(value)
}

func kindOf(value []byte) string {
	if len(value) == 0 {
		return "nothing"
	}
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a text"
	case 'n':
		return "null"
	case 't', 'f':
		return string(value)
	default:
		return "a number"
	}
}

// wrongJSON words an error of json.Unmarshal: which member, what was expected of it and what was found.
func wrongJSON(err error, what string) error {
	var kind *json.UnmarshalTypeError
	if !errors.As(err, &kind) {
		return FieldError{"", "expected " + what + ", found no JSON: " + err.Error()}
	}
	found := map[string]string{"array": "a list", "string": "a text", "number": "a number", "object": "an object", "bool": "true or false"}
	name, of, _ := strings.Cut(kind.Value, " ") // "number 7" where the number does not fit
	if of != "" {
		return FieldError{kind.Field, "expected " + what + ", found the number " + of}
	}
	if kind.Field != "" {
		what = "a text"
	}
	return FieldError{kind.Field, "expected " + what + ", found " + found[name]}
}

// Errors of scanner. They name no path; whoever calls it knows which member it was in.
var (
	errNotUTF8 = errors.New("expected UTF-8, found other bytes")
	errNUL     = errors.New("expected a text without NUL characters, found one")
	errDeep    = errors.New("expected fewer levels of nesting")
)

// scanner reads JSON text once, and is as strict as encoding/json. It exists because a projection decodes every record of
// its topic: encoding/json reads the same bytes four times to give members as they came, and its limit of depth cannot be
// set. The scanner also refuses NUL characters, which Postgres cannot keep.
type scanner struct {
	text   []byte
	at     int
	levels int // how many objects and lists may still be opened, one in the other
}

func (s *scanner) unexpected() error {
	if s.at >= len(s.text) {
		return errors.New("expected more JSON, found its end")
	}
	return fmt.Errorf("expected JSON, found %q at byte %d", s.text[s.at], s.at)
}

func (s *scanner) space() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// next returns the byte that comes next, past spaces; 0 at the end.
func (s *scanner) next() byte {
	s.space()
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

// take passes c, if that is what comes next.
func (s *scanner) take(c byte) bool {
	if s.next() != c {
		return false
	}
	s.at++
	return true
}

// value passes one value and returns it as it stands there.
func (s *scanner) value() ([]byte, error) {
	c := s.next()
	start := s.at
	var err error
	switch {
	case c == '"':
		err = s.string()
	case c == '{':
		err = s.object(func([]byte, []byte) {})
	case c == '[':
		err = s.list(func(int, []byte) {})
	case c == '-' || c >= '0' && c <= '9':
		err = s.number()
	default:
		err = s.word()
	}
	return s.text[start:s.at], err
}

// object passes an object and calls do for each member. Its error is a FieldError where a member is at fault.
func (s *scanner) object(do func(name, value []byte)) error {
	if s.levels == 0 {
		return errDeep
	}
	s.levels--
	defer func() { s.levels++ }()
	s.at++
	if s.take('}') {
		return nil
	}
	for {
		if s.next() != '"' {
			return s.unexpected()
		}
		start := s.at
		if err := s.string(); err != nil {
			return err
		}
		name := unquoted(s.text[start:s.at])
		if !s.take(':') {
			return s.unexpected()
		}
		value, err := s.value()
		if err != nil {
			return underMember(string(name), err)
		}
		do(name, value)
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return s.unexpected()
		}
	}
}

// list passes a list and calls do for each element.
func (s *scanner) list(do func(i int, value []byte)) error {
	if s.levels == 0 {
		return errDeep
	}
	s.levels--
	defer func() { s.levels++ }()
	s.at++
	if s.take(']') {
		return nil
	}
	for i := 0; ; i++ {
		value, err := s.value()
		if err != nil {
			return underMember("["+strconv.Itoa(i)+"]", err)
		}
		do(i, value)
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return s.unexpected()
		}
	}
}

func (s *scanner) string() error {
	for s.at++; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; {
		case c == '"':
			s.at++
			return nil
		case c == 0:
			return errNUL
		case c < ' ':
			return s.unexpected()
		case c == '\\':
			s.at++
			if s.at >= len(s.text) {
				return s.unexpected()
			}
			if s.text[s.at] != 'u' {
				if strings.IndexByte(`"\/bfnrt`, s.text[s.at]) < 0 {
					return s.unexpected()
				}
				continue
			}
			digits := s.text[s.at+1 : min(s.at+5, len(s.text))]
			if n, err := strconv.ParseUint(string(digits), 16, 16); err != nil || len(digits) < 4 {
				return s.unexpected()
			} else if n == 0 {
				return errNUL
			}
			s.at += 4
		}
	}
	return s.unexpected()
}

func (s *scanner) number() error {
	digits := func() bool {
		start := s.at
		for s.at < len(s.text) && s.text[s.at] >= '0' && s.text[s.at] <= '9' {
			s.at++
		}
		return s.at > start
	}
	here := func(one string) bool { return s.at < len(s.text) && strings.IndexByte(one, s.text[s.at]) >= 0 }
	if here("-") {
		s.at++
	}
	if here("0") {
		s.at++
	} else if !digits() {
		return s.unexpected()
	}
	if here(".") {
		s.at++
		if !digits() {
			return s.unexpected()
		}
	}
	if here("eE") {
		s.at++
		if here("+-") {
			s.at++
		}
		if !digits() {
			return s.unexpected()
		}
	}
	return nil
}

func (s *scanner) word() error {
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.text[s.at:], []byte(word)) {
			s.at += len(word)
			return nil
		}
	}
	return s.unexpected()
}

// longestName is how much of a member's name a path shows: whoever wrote the record chose it.
const longestName = 64

// underMember puts a member's name before the path of an error in its value.
func underMember(name string, err error) error {
	if len(name) > longestName {
		name = strings.ToValidUTF8(name[:longestName], "") + "…"
	}
	var inner FieldError
	if errors.As(err, &inner) {
		if !strings.HasPrefix(inner.Path, "[") {
			name += "."
		}
		return FieldError{name + inner.Path, inner.Message}
	}
	return FieldError{name, err.Error()}
}

// members calls do for each member of the JSON object that text is, with the member's value as it stands there. At most
// so many levels of nesting are taken, the object's own included. Nil means that all of text is sound.
func members(text []byte, levels int, do func(name, value []byte)) *FieldError {
	s := scanner{text: text, levels: levels}
	c := s.next()
	var err error
	switch {
	case !utf8.Valid(text):
		err = errNotUTF8
	case c == '{':
		err = s.object(do)
	default:
		var value []byte
		if value, err = s.value(); err == nil {
			err = errors.New(expected("a JSON object", value))
		}
	}
	if s.space(); err == nil && s.at < len(text) {
		err = fmt.Errorf("expected one JSON object, found %q behind it", text[s.at])
	}
	switch inner, ok := err.(FieldError); { //nolint:errorlint // underMember leaves nothing wrapped
	case err == nil:
		return nil
	case ok:
		if inner.Message == errDeep.Error() {
			inner.Message = fmt.Sprintf("expected at most %d levels of nesting, found more", levels)
		}
		return &inner
	default:
		return &FieldError{"", err.Error()}
	}
}

// textOf returns the text that a JSON value is; ok is false where it is something else.
func textOf(value []byte) (text string, ok bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	return string(unquoted(value)), true
}

// unquoted returns what a JSON string that was scanned before means.
func unquoted(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var text string
	_ = json.Unmarshal(quoted, &text) // the scanner has passed it
	return []byte(text)
}
