package story

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Projection is what a story knows of one projection, by the rules and not by Tidemark's code: how a record is read, which
// row it makes, and how the tables are written as text.
type Projection struct {
	Name   string
	Topic  string
	Schema string
	// Tables are its own, in the order in which they are locked.
	Tables []string

	// read reads a record; an error makes it a dead letter.
	read func(Record) (readable, error)
	// earlier says which of two records with one key is the row.
	earlier func(a, b Record) int
	// fold makes the derived table's lines of the rows; nil where there is none.
	fold func(rows []candidate) string

	rowsSQL, derivedSQL string
}

// readable is a record that can be read.
type readable struct {
	key    string    // of the main table, ordered as its dump is
	ticket uuid.UUID // of the command
	at     time.Time // of timestamps: the instant
	text   string    // the row's columns up to created_at, as a dump has them
	change endpointChange
}

// EndpointPartitions is KAFKA_CLAIMED_PARTITIONS of every story: as many as `tidemark up` has.
const EndpointPartitions = 6

// Timestamps and Endpoints are the projections there are.
var (
	Timestamps = Projection{
		Name: "timestamps", Topic: Topic, Schema: "public", Tables: []string{"timestamp_records"},
		read: func(r Record) (readable, error) {
			id, at, err := decode(r.Value)
			return readable{key: id.String(), ticket: id, at: at, text: fmt.Sprintf("%s\t%s", id, canonical(at))}, err
		},
		earlier: func(a, b Record) int {
			return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
		},
		// In one piece: a story dumps thousands of rows again and again.
		rowsSQL: `SELECT string_agg(concat_ws(E'\t', id, ` + instantOf("event_timestamp") + `, ` + instantOf("created_at") + `, partition, "offset"), E'\n' ORDER BY id)
			FROM public.timestamp_records HAVING count(*) > 0`,
	}
	Endpoints = Projection{
		Name: "endpoints", Topic: EndpointTopic, Schema: "endpoints", Tables: []string{"endpoint_commands", "current_endpoints"},
		read:    readEndpoint,
		earlier: func(a, b Record) int { return cmp.Compare(a.Offset, b.Offset) },
		fold:    foldEndpoints,
		rowsSQL: `SELECT string_agg(concat_ws(E'\t', endpoint_id, command_id, kind, ` + hexOf("document") + `, sent_by, ` + instantOf("created_at") + `, partition, "offset"), E'\n' ORDER BY endpoint_id, command_id)
			FROM endpoints.endpoint_commands HAVING count(*) > 0`,
		derivedSQL: `SELECT string_agg(concat_ws(E'\t', endpoint_id, deleted, coalesce(url, 'NULL'), coalesce(name, 'NULL'), coalesce(group_name, 'NULL'), coalesce(tags, 'NULL'),
				coalesce(interval_seconds::text, 'NULL'), coalesce(enabled::text, 'NULL'), ` + hexOf("document") + `, coalesce(` + instantOf("created_at") + `, 'NULL'),
				` + instantOf("changed_at") + `, changed_by, command_id, partition, "offset"), E'\n' ORDER BY endpoint_id)
			FROM endpoints.current_endpoints HAVING count(*) > 0`,
	}
)

func instantOf(column string) string {
	return `to_char(` + column + ` AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`
}

// hexOf writes a text whose line breaks would break a dump's lines.
func hexOf(column string) string {
	return `coalesce(encode(convert_to(` + column + `, 'UTF8'), 'hex'), 'NULL')`
}

// endpointChange is a command about an endpoint.
type endpointChange struct {
	command, endpoint uuid.UUID
	sentBy            string
	document          []byte // nil is a delete
	settings          endpointSettings
}

type endpointSettings struct {
	URL      string   `json:"url"`
	Name     string   `json:"name"`
	Group    string   `json:"group"`
	Tags     []string `json:"tags"`
	Interval string   `json:"interval"`
	Enabled  *bool    `json:"enabled"`
}

// readEndpoint reads a value the plain way, with none of Tidemark's code: as strictly as the stories need.
func readEndpoint(r Record) (readable, error) {
	var raw struct {
		CommandID  uuid.UUID       `json:"command_id"`
		EndpointID uuid.UUID       `json:"endpoint_id"`
		Kind       string          `json:"kind"`
		SentBy     *string         `json:"sent_by"`
		Endpoint   json.RawMessage `json:"endpoint"`
	}
	if err := json.Unmarshal(r.Value, &raw); err != nil {
		return readable{}, err
	}
	c := endpointChange{command: raw.CommandID, endpoint: raw.EndpointID}
	if c.command == uuid.Nil || c.endpoint == uuid.Nil || raw.SentBy == nil {
		return readable{}, errors.New("a member is missing")
	}
	c.sentBy = *raw.SentBy
	switch raw.Kind {
	case "delete":
	case "put":
		c.document = raw.Endpoint
		if err := json.Unmarshal(c.document, &c.settings); err != nil {
			return readable{}, err
		}
		at, err := url.Parse(c.settings.URL)
		if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" || c.settings.Name == "" || c.settings.Tags == nil || c.settings.Enabled == nil {
			return readable{}, fmt.Errorf("%s is no endpoint", c.document)
		}
		interval, err := time.ParseDuration(c.settings.Interval)
		if err != nil || interval < 5*time.Second || interval > 24*time.Hour || interval%time.Second != 0 {
			return readable{}, fmt.Errorf("%q is no interval", c.settings.Interval)
		}
	default:
		return readable{}, fmt.Errorf("%q is no kind", raw.Kind)
	}
	if string(r.Key) != c.endpoint.String() || r.Partition != PartitionOf(string(r.Key), EndpointPartitions) {
		return readable{}, errors.New("it stands in a partition that is not its endpoint's")
	}
	return readable{
		key: c.endpoint.String() + "\t" + c.command.String(), ticket: c.command, change: c,
		text: fmt.Sprintf("%s\t%s\t%s\t%s\t%s", c.endpoint, c.command, raw.Kind, hexText(c.document), c.sentBy),
	}, nil
}

// foldEndpoints makes the endpoints as they are after these commands.
func foldEndpoints(rows []candidate) string {
	type now struct {
		made time.Time
		last candidate
	}
	endpoints := map[string]now{}
	// All commands of an endpoint are in one partition.
	for _, c := range slices.SortedFunc(slices.Values(rows), func(a, b candidate) int { return cmp.Compare(a.Offset, b.Offset) }) {
		id := c.change.endpoint.String()
		made := endpoints[id].made
		switch {
		case c.change.document == nil:
			made = time.Time{}
		case made.IsZero():
			made = c.Time
		}
		endpoints[id] = now{made, c}
	}
	var text strings.Builder
	for _, id := range slices.Sorted(maps.Keys(endpoints)) {
		n := endpoints[id]
		change, end := n.last.change, fmt.Sprintf("%s\t%s\t%s\t%d\t%d\n", canonical(n.last.Time), n.last.change.sentBy, n.last.change.command, n.last.Partition, n.last.Offset)
		if change.document == nil {
			text.WriteString(id + "\tt" + strings.Repeat("\tNULL", 8) + "\t" + end)
			continue
		}
		s := change.settings
		tags, _ := json.Marshal(s.Tags)               // texts always marshal
		interval, _ := time.ParseDuration(s.Interval) // it was read before
		fmt.Fprintf(&text, "%s\tf\t%s\t%s\t%s\t%s\t%d\t%t\t%s\t%s\t%s", id, s.URL, s.Name, s.Group, tags, int(interval.Seconds()), *s.Enabled, hexText(change.document), canonical(n.made), end)
	}
	return text.String()
}

func hexText(document []byte) string {
	if document == nil {
		return "NULL"
	}
	return hex.EncodeToString(document)
}
