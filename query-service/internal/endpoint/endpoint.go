// Package endpoint reads the endpoints as they are now, and the history of each. The endpoints as they are now are a
// derived table: while its projection has not caught up once, nothing of it is returned, since it would be a part.
package endpoint

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
)

// Projection is the one whose tables these are.
const Projection = "endpoints"

var (
	// ErrNotFound says that no endpoint ever had the id, in the snapshot that was read.
	ErrNotFound = errors.New("no endpoint has this id")
	// ErrCursor says that a cursor is none that a list has handed out.
	ErrCursor = errors.New("this is no cursor of a page here")
)

// Endpoint is one as it is now.
type Endpoint struct {
	ID        uuid.UUID
	Deleted   bool // then all of it is zero up to CreatedAt
	URL       string
	Name      string
	Group     string
	Tags      []string
	Interval  time.Duration
	Enabled   bool
	Document  json.RawMessage // as the last put has it, members that this release does not know included
	CreatedAt time.Time       // the log's own time of the put that made it
	ChangedAt time.Time       // and of the last command about it
	ChangedBy string          // name of the key that sent that command; empty without keys
	Ticket    uuid.UUID       // of that command
	Position  position.Position
}

// Change is one put or delete of an endpoint.
type Change struct {
	Ticket   uuid.UUID
	Kind     event.EndpointKind
	Document json.RawMessage // of a put
	By       string          // name of the key that sent it; empty without keys
	At       time.Time       // the log's own time
	Position position.Position
	Members  []Member // what is different from the put before, by name; of a put that follows a put
}

// Member is one member of an endpoint that a put has changed; nil where it was or is not there.
type Member struct {
	Name          string
	Before, After json.RawMessage
}

// differences compares two documents member by member.
func differences(before, after json.RawMessage) ([]Member, error) {
	var a, b map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(before, &a), json.Unmarshal(after, &b)); err != nil {
		return nil, fmt.Errorf("compare two puts of an endpoint: %w", err)
	}
	names := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(names)
	var out []Member
	for _, name := range slices.Compact(names) {
		if !bytes.Equal(a[name], b[name]) {
			out = append(out, Member{name, a[name], b[name]})
		}
	}
	return out, nil
}

// Filter says which endpoints are wanted. Its zero values want any.
type Filter struct {
	Group string
	Tag   string
	Text  string // in the name or the URL, in any case
}

// Cursor is the place in the list after which a page begins: endpoints come by name, and by id where names
// are equal. The zero value is the beginning.
type Cursor struct {
	Name string
	ID   uuid.UUID
}

// String prints the cursor for an address.
func (c Cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(append(c.ID[:], c.Name...))
}

// ParseCursor reads what String prints, or returns ErrCursor.
func ParseCursor(s string) (c Cursor, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < len(c.ID) || bytes.IndexByte(b[len(c.ID):], 0) >= 0 {
		return Cursor{}, ErrCursor
	}
	copy(c.ID[:], b)
	c.Name = string(bytes.ToValidUTF8(b[len(c.ID):], nil))
	return c, nil
}

// FormatInterval prints an interval as people write it: 5m, where Duration.String has 5m0s.
func FormatInterval(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
