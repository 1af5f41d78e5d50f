// Package deadletter reads the records that could not be projected, by the position they have in the
// log. What it hands out is bounded: a payload can be as large as Kafka lets a record be.
package deadletter

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/position"
)

// ShownBytes is how much of a payload is read; headers larger than that are left out.
const ShownBytes = 16 << 10

// ErrNotFound says that there is no dead letter at the position.
var ErrNotFound = errors.New("no dead letter is there")

// DeadLetter is one record that ended as rejected.
type DeadLetter struct {
	Position     position.Position
	Payload      []byte // its first ShownBytes; nil where the record had no value
	PayloadBytes int    // of the whole
	Headers      json.RawMessage
	ReasonCode   string
	Reason       string
	FirstSeenAt  time.Time // the log's own time
}

// Truncated reports whether Payload is only the beginning.
func (d DeadLetter) Truncated() bool { return d.PayloadBytes > len(d.Payload) }

// Text returns the payload as text, and whether it is text. A character that the bound has cut in two
// is left out.
func (d DeadLetter) Text() (string, bool) {
	b := d.Payload
	if d.Truncated() {
		for cut := 0; cut < utf8.UTFMax && len(b) > 0; cut++ {
			if r, size := utf8.DecodeLastRune(b); r != utf8.RuneError || size > 1 {
				break
			}
			b = b[:len(b)-1]
		}
	}
	return string(b), utf8.Valid(b)
}

// Header is one of a record's headers, as text.
type Header struct{ Key, Value string }

// HeaderList reads Headers for people. A part that is no text is in base64, and says so.
func (d DeadLetter) HeaderList() []Header {
	var raw []map[string]string
	if json.Unmarshal(d.Headers, &raw) != nil {
		return nil // another release's form: the API has it as it is
	}
	part := func(m map[string]string, name string) string {
		if encoded, ok := m[name+"_base64"]; ok {
			return "base64:" + encoded
		}
		return m[name]
	}
	list := make([]Header, len(raw))
	for i, m := range raw {
		list[i] = Header{part(m, "key"), part(m, "value")}
	}
	return list
}

type row struct {
	Topic        string    `db:"topic"`
	Partition    int32     `db:"partition"`
	Offset       int64     `db:"offset"`
	Payload      []byte    `db:"payload"`
	PayloadBytes int       `db:"payload_bytes"`
	Headers      []byte    `db:"headers"`
	ReasonCode   string    `db:"reason_code"`
	Reason       string    `db:"reason"`
	FirstSeenAt  time.Time `db:"first_seen_at"`
}

const columns = `SELECT topic, partition, "offset", substring(payload FOR 16384) AS payload, coalesce(octet_length(payload), 0) AS payload_bytes,
	CASE WHEN octet_length(headers::text) <= 16384 THEN headers::text END AS headers, reason_code, reason, first_seen_at
FROM public.dead_letters`

func (r row) deadLetter() DeadLetter {
	return DeadLetter{
		position.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
		r.Payload, r.PayloadBytes, r.Headers, r.ReasonCode, r.Reason, r.FirstSeenAt,
	}
}

// At returns the dead letter at p, or ErrNotFound.
func At(ctx context.Context, s *projection.Snapshot, p position.Position) (DeadLetter, error) {
	var r row
	err := s.Get(ctx, &r, columns+` WHERE topic = $1 AND partition = $2 AND "offset" = $3`, p.Topic, p.Partition, p.Offset)
	if errors.Is(err, sql.ErrNoRows) {
		return DeadLetter{}, ErrNotFound
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read a dead letter: %w", err)
	}
	return r.deadLetter(), nil
}

// List returns up to limit dead letters above after, in the order of topic, partition and offset, and
// the position to go on after, nil where that was all. The zero position starts at the beginning.
func List(ctx context.Context, s *projection.Snapshot, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
	var rows []row
	err := s.Select(ctx, &rows, columns+` WHERE (topic, partition, "offset") > ($1, $2, $3) ORDER BY topic, partition, "offset" LIMIT $4`,
		after.Topic, after.Partition, after.Offset, limit+1)
	if err != nil {
		return nil, nil, fmt.Errorf("list dead letters: %w", err)
	}
	letters := make([]DeadLetter, 0, limit)
	for _, r := range rows[:min(len(rows), limit)] {
		letters = append(letters, r.deadLetter())
	}
	if len(rows) <= limit {
		return letters, nil, nil
	}
	return letters, &letters[limit-1].Position, nil
}
