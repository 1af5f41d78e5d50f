package projection

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

// catalogFor is how long the list of projections is good: a new one is made by a new release of
// consumer-service, which is no matter of milliseconds.
const catalogFor = 3 * time.Second

// Definition says what a projection is, as consumer-service wrote it into the table projections. Nothing
// else in this service knows which projections there are.
type Definition struct {
	Name         string
	Topic        string   // that it reads
	Schema       string   // where the tables of its serving generation stand
	Tables       []string // its own, in the order in which they are locked
	MainTable    string   // one row for each applied record
	TicketColumn string   // of the main table, the command's id; empty where records have no tickets
}

// Table prints one of its tables as it stands in a statement.
func (d Definition) Table(name string) string { return postgres.Qualified(d.Schema, name) }

// UnknownError says that there is no such projection, and which there are.
type UnknownError struct {
	Name   string   // that was asked for; empty where a topic was
	Topic  string   // that no projection reads; empty where a name was asked for
	Known  []string // names
	Topics []string
}

func (e *UnknownError) Error() string {
	if e.Topic != "" {
		return fmt.Sprintf("no projection reads the topic %q: they read %s", e.Topic, strings.Join(e.Topics, ", "))
	}
	return fmt.Sprintf("there is no projection %q: there are %s", e.Name, strings.Join(e.Known, ", "))
}

// Catalog is the projections that there are: the table projections as of some seconds ago. Nobody who can be answered
// from what is known waits for the table to be read again, since that takes a connection, and when those are scarce every
// read would stand behind it. It is safe for concurrent use.
type Catalog struct {
	db *sqlx.DB

	mu      sync.Mutex
	known   []Definition // by name
	err     error        // of the last reading
	read    time.Time
	reading chan struct{} // closed when the reading under way has ended; nil where none is
}

// NewCatalog reads from db when it is first asked.
func NewCatalog(db *sqlx.DB) *Catalog { return &Catalog{db: db} }

// All returns every projection, by name. The caller does not change them. What was read before is good
// enough while the database does not answer: whoever goes on to read tables finds that out.
func (c *Catalog) All(ctx context.Context) ([]Definition, error) {
	c.mu.Lock()
	known, err, stale := c.known, c.err, time.Since(c.read) > catalogFor
	var reading chan struct{}
	if stale {
		reading = c.begin(ctx)
	}
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if !stale {
		return nil, err
	}
	if err := c.wait(ctx, reading); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != nil {
		return c.known, nil
	}
	return nil, c.err
}

// Named returns one projection, or *UnknownError.
func (c *Catalog) Named(ctx context.Context, name string) (Definition, error) {
	return c.find(ctx, func(d Definition) bool { return d.Name == name }, UnknownError{Name: name})
}

// OfTopic returns the projection that reads a topic, or *UnknownError.
func (c *Catalog) OfTopic(ctx context.Context, name string) (Definition, error) {
	return c.find(ctx, func(d Definition) bool { return d.Topic == name }, UnknownError{Topic: name})
}

// Label is the name by which metrics speak of a topic: that of the projection which reads it, decisions for
// decisions on dead letters, and unknown for any other.
func (c *Catalog) Label(of string) string {
	if of == topic.DeadLetterCommand.Name {
		return "decisions"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.known {
		if d.Topic == of {
			return d.Name
		}
	}
	return "unknown"
}

// find looks again in the database before it says that there is none.
func (c *Catalog) find(ctx context.Context, is func(Definition) bool, unknown UnknownError) (Definition, error) {
	known, err := c.All(ctx)
	if err != nil {
		return Definition{}, err
	}
	if i := slices.IndexFunc(known, is); i >= 0 {
		return known[i], nil
	}
	if known, err = c.readAgain(ctx); err != nil {
		return Definition{}, err
	}
	if i := slices.IndexFunc(known, is); i >= 0 {
		return known[i], nil
	}
	for _, d := range known {
		unknown.Known = append(unknown.Known, d.Name)
		unknown.Topics = append(unknown.Topics, d.Topic)
	}
	return Definition{}, &unknown
}

// readAgain returns what a reading finds that began after the call.
func (c *Catalog) readAgain(ctx context.Context) ([]Definition, error) {
	c.mu.Lock()
	before := c.reading
	c.mu.Unlock()
	if before != nil {
		if err := c.wait(ctx, before); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	reading := c.begin(ctx)
	c.mu.Unlock()
	if err := c.wait(ctx, reading); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known, c.err
}

// wait waits for the end of a reading.
func (*Catalog) wait(ctx context.Context, reading chan struct{}) error {
	select {
	case <-reading:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin starts to read the table, unless that is under way, with mu held. It is read for all: that the one who asked
// leaves is no reason to stop.
func (c *Catalog) begin(ctx context.Context) (ended chan struct{}) {
	if c.reading == nil {
		c.reading = make(chan struct{})
		go c.load(context.WithoutCancel(ctx))
	}
	return c.reading
}

// load reads the table. An error leaves what is known, and is not asked for again at once: readers would queue for the
// same one.
func (c *Catalog) load(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	known, err := c.query(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read, c.err = time.Now(), err
	if err == nil {
		c.known = known
	}
	close(c.reading)
	c.reading = nil
}

func (c *Catalog) query(ctx context.Context) ([]Definition, error) {
	var rows []struct {
		Projection   string `db:"projection"`
		Topic        string `db:"topic"`
		Schema       string `db:"schema_name"`
		Tables       []byte `db:"tables"`
		MainTable    string `db:"main_table"`
		TicketColumn string `db:"ticket_column"`
	}
	err := c.db.SelectContext(ctx, &rows, `
SELECT projection, topic, schema_name, array_to_json(tables)::text AS tables, main_table, coalesce(ticket_column, '') AS ticket_column
FROM public.projections ORDER BY projection COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("read the list of projections: %w", err)
	}
	known := make([]Definition, len(rows))
	for i, r := range rows {
		known[i] = Definition{Name: r.Projection, Topic: r.Topic, Schema: r.Schema, MainTable: r.MainTable, TicketColumn: r.TicketColumn}
		if err := json.Unmarshal(r.Tables, &known[i].Tables); err != nil {
			return nil, fmt.Errorf("read the list of projections: %w", err)
		}
	}
	return known, nil
}
