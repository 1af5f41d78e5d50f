// Package position names one place in the log, written topic/partition@offset. A client gets the position of its
// command with the ticket, and sends it with a GET to read its own write.
package position

import (
	"fmt"
	"strconv"
	"strings"
)

// Header is the HTTP header that carries a position, in the answer to a command and in the request of a read.
const Header = "Tidemark-Position"

// Position is one place in the log. The zero value is no place: its topic is empty.
type Position struct {
	Topic     string
	Partition int32
	Offset    int64
}

func (p Position) String() string {
	return p.Topic + "/" + strconv.FormatInt(int64(p.Partition), 10) + "@" + strconv.FormatInt(p.Offset, 10)
}

// Parse reads what String prints. The topic may hold the characters Kafka allows in a name
// (letters, digits, dot, underscore, hyphen; at most 249 of them).
func Parse(s string) (Position, error) {
	bad := func() (Position, error) {
		if len(s) > 300 {
			s = s[:300] + "…"
		}
		return Position{}, fmt.Errorf("%q is no position: it is written topic/partition@offset, for example timestamp.command.v1/3@42", s)
	}
	topic, rest, ok := strings.Cut(s, "/")
	if !ok || topic == "" || len(topic) > 249 {
		return bad()
	}
	for _, c := range []byte(topic) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return bad()
		}
	}
	partition, offset, ok := strings.Cut(rest, "@")
	if !ok {
		return bad()
	}
	p, err := strconv.ParseUint(partition, 10, 31)
	if err != nil {
		return bad()
	}
	o, err := strconv.ParseUint(offset, 10, 63)
	if err != nil {
		return bad()
	}
	return Position{Topic: topic, Partition: int32(p), Offset: int64(o)}, nil
}
