package projection

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

// beginning is the first message of a snapshot: it begins, locks the tables of the projections that are
// read and the progress of the one that is waited for, and reads the serving generations, the wanted
// partitions' progress, and whether a process has noted that it refuses the log of those. All of it travels
// in one message: of what a read costs, most is messages. LOCK TABLE takes no snapshot, so the one that
// follows is chosen with the locks held. ONLY, since the days of a partitioned table never move. A message
// of several statements takes no parameters; what is put in are names from the table projections, quoted,
// and a position, whose characters position.Parse has checked.
func beginning(read []Definition, awaited Definition, wants []Want) string {
	var locks, names []string
	lock := func(d Definition, tables []string) {
		for _, t := range tables {
			locks = append(locks, "ONLY "+d.Table(t))
		}
		names = append(names, literal(d.Name))
	}
	read = slices.Clone(read)
	if awaited.Name != "" && !slices.ContainsFunc(read, func(d Definition) bool { return d.Name == awaited.Name }) {
		awaited.Tables = nil // only its progress is read
		read = append(read, awaited)
		slices.SortFunc(read, func(a, b Definition) int { return strings.Compare(a.Name, b.Name) })
	}
	for _, d := range read {
		if d.Name == awaited.Name && d.Tables == nil {
			lock(d, []string{schema.Progress})
			continue
		}
		lock(d, schema.LockOrder(d.Tables))
	}
	const none = `false, NULL::int, NULL::bigint, NULL::bigint, NULL::bigint FROM public.projection_generations g`
	const noted = `FROM public.projection_generations g JOIN public.projections r USING (projection)`
	progress, partitions := none, partitionsOf(wants)
	switch {
	case partitions == "":
	case awaited.Name != "":
		progress = fmt.Sprintf(`r.refusal <> '', p.partition, p.epoch, p.first_offset, p.next_offset `+noted+`
LEFT JOIN %s p ON g.projection = %s AND p.topic = %s AND p.partition IN (%s)`, awaited.Table(schema.Progress), literal(awaited.Name), literal(awaited.Topic), partitions)
	default: // decisions belong to no generation, and are read from their log's start
		progress = fmt.Sprintf(`r.refusal <> '', p.partition, g.epoch, 0::bigint, p.next_offset `+noted+`
LEFT JOIN public.decision_progress p ON p.partition IN (%s)`, partitions)
	}
	return `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
LOCK TABLE ` + strings.Join(locks, ", ") + ` IN ACCESS SHARE MODE;
SELECT g.projection, g.generation, g.epoch, ` + progress + `
WHERE g.state IN ('serving', 'swapping') AND g.projection IN (` + strings.Join(names, ", ") + `)`
}

// partitionsOf prints the partitions of the wanted positions, each once, empty where none is wanted.
func partitionsOf(wants []Want) string {
	var of []int32
	for _, w := range wants {
		if w.Asked() {
			of = append(of, w.Position.Partition)
		}
	}
	slices.Sort(of)
	var out []string
	for _, p := range slices.Compact(of) {
		out = append(out, strconv.Itoa(int(p)))
	}
	return strings.Join(out, ", ")
}

// literal prints a text as it stands in a statement.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// staleConnections is more than a pool keeps: after a restart of the database each of them fails once.
const staleConnections = 100

// open takes a connection and begins. The pool finds out that a connection is broken only when it is
// used; then the next one is taken, since nothing has happened yet.
func (r *Reader) open(ctx context.Context, read []Definition, awaited Definition, wants func() []Want) (*Snapshot, error) {
	if len(read) == 0 {
		return nil, errors.New("no projection is read")
	}
	begin := ""
	for try := 1; ; try++ {
		conn, err := r.db.Connx(ctx)
		if err != nil {
			return nil, &connectError{err}
		}
		if begin == "" {
			begin = beginning(read, awaited, wants())
		}
		s, err := openOn(ctx, conn, begin, read, awaited)
		if err == nil {
			s.decided, s.answered = &r.decided, &r.answered
			return s, nil
		}
		_ = end(ctx, conn) // the error that counts is known
		if !broken(err) || try == staleConnections {
			return nil, fmt.Errorf("open a snapshot: %w", err)
		}
	}
}

func openOn(ctx context.Context, conn *sqlx.Conn, begin string, read []Definition, awaited Definition) (*Snapshot, error) {
	rows, err := conn.QueryContext(ctx, begin)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // its error is that of Err below
	s := &Snapshot{conn: conn, at: map[Place]Progress{}}
	of := awaited.Topic
	if of == "" {
		of = topic.DeadLetterCommand.Name
	}
	serving, refuses := map[string]Served{}, map[string]bool{}
	for rows.Next() {
		var d Served
		var noted bool
		var partition *int32
		var epoch, first, next *int64
		if err := rows.Scan(&d.Name, &d.Generation, &d.Epoch, &noted, &partition, &epoch, &first, &next); err != nil {
			return nil, err
		}
		if partition != nil {
			s.at[Place{of, *partition}] = Progress{*epoch, *first, *next}
		}
		serving[d.Name], refuses[d.Name] = d, noted
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, d := range read {
		g, serves := serving[d.Name]
		if !serves {
			return nil, fmt.Errorf("no generation of %s is serving", d.Name)
		}
		g.Definition = d
		s.served = append(s.served, g)
	}
	s.waited = s.served[0] // for decisions, any: they belong to none
	if awaited.Name != "" {
		s.waited = serving[awaited.Name]
		s.waited.Definition = awaited
	}
	s.refused = func(context.Context) error { return nil }
	if refuses[s.waited.Name] && (awaited.Name != "" || len(read) == 1) {
		s.refused = refusalOnce(s)
	}
	return s, nil
}

func broken(err error) bool {
	var network *net.OpError
	return errors.Is(err, driver.ErrBadConn) || errors.As(err, &network)
}

// end leaves the transaction, in which nothing was written, and gives the connection back; one that
// cannot leave it is closed instead.
func end(ctx context.Context, conn *sqlx.Conn) error {
	if _, err := conn.ExecContext(ctx, `ROLLBACK`); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // this is how database/sql is told
	}
	if err := conn.Close(); err != nil && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("give the connection back: %w", err)
	}
	return nil
}

// refusalOnce reads the refusal when it is first asked for: a group has many members that wait for a position.
func refusalOnce(s *Snapshot) func(context.Context) error {
	var refusal error
	known := false
	return func(ctx context.Context) error {
		if !known {
			refusal, known = s.refusal(ctx), true
		}
		return refusal
	}
}

// refusal returns *RefusedError where the projection that is waited for has stopped by itself: a process
// has written why since the last watermark.
func (s *Snapshot) refusal(ctx context.Context) error {
	var reason string
	err := s.Get(ctx, &reason, fmt.Sprintf(standingRefusal, s.waited.Table(schema.Progress)), s.waited.Name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("read why %s has stopped: %w", s.waited.Name, err)
	}
	return &RefusedError{Projection: s.waited.Name, Reason: strings.TrimSuffix(reason, ".")}
}

// standingRefusal is the refusal of projection $1 that no process has made obsolete since.
const standingRefusal = `
SELECT refusal FROM public.projections
WHERE projection = $1 AND refusal <> '' AND refused_at > coalesce((SELECT max(caught_up_at) FROM %s), '-infinity')`

// CaughtUpAt is the instant up to which everything accepted on the projection's topic is projected: the
// least over its partitions, nil where one has never caught up or none is known.
func (s *Snapshot) CaughtUpAt(ctx context.Context, of Served) (*time.Time, error) {
	var least *time.Time
	err := s.Get(ctx, &least, `SELECT CASE WHEN count(*) = count(caught_up_at) THEN min(caught_up_at) END FROM `+of.Table(schema.Progress))
	if err != nil {
		return nil, fmt.Errorf("read the watermark of %s: %w", of.Name, err)
	}
	return least, nil
}

// Complete returns *RebuildingError while the epoch of the projection has not caught up once: its derived
// tables then hold a part. Whoever reads one asks first.
func (s *Snapshot) Complete(ctx context.Context, of Served) error {
	var sum struct {
		Partitions int    `db:"partitions"`
		CaughtUp   int    `db:"caught_up"`
		Done       int64  `db:"done"`
		Total      *int64 `db:"total"`
	}
	err := s.Get(ctx, &sum, `
SELECT count(*) AS partitions, count(caught_up_at) AS caught_up, coalesce(sum(next_offset - first_offset), 0)::bigint AS done,
	CASE WHEN count(*) = count(log_end) THEN sum(greatest(log_end, next_offset) - first_offset)::bigint END AS total
FROM `+of.Table(schema.Progress))
	switch {
	case err != nil:
		return fmt.Errorf("read how far %s is: %w", of.Name, err)
	case sum.Partitions > 0 && sum.CaughtUp == sum.Partitions:
		return nil
	}
	rebuilding := &RebuildingError{Projection: of.Name, Done: sum.Done, Total: sum.Total}
	if sum.Total != nil {
		percent := 100.0
		if *sum.Total > 0 {
			percent = 100 * float64(sum.Done) / float64(*sum.Total)
		}
		rebuilding.Percent = &percent
	}
	return rebuilding
}

// NextOffsets reads how far each partition of the topics is, for a Watch: a hint, outside any snapshot, in one query. A
// topic that no projection reads has no partitions.
func NextOffsets(db *sqlx.DB, catalog *Catalog) func(ctx context.Context, topics []string) (map[Place]int64, error) {
	return func(ctx context.Context, topics []string) (map[Place]int64, error) {
		known, err := catalog.All(ctx)
		if err != nil {
			return nil, err
		}
		var parts []string
		if slices.Contains(topics, topic.DeadLetterCommand.Name) {
			parts = append(parts, `SELECT `+literal(topic.DeadLetterCommand.Name)+`::text, partition, next_offset FROM public.decision_progress`)
		}
		for _, d := range known {
			if slices.Contains(topics, d.Topic) {
				parts = append(parts, `SELECT topic, partition, next_offset FROM `+d.Table(schema.Progress))
			}
		}
		if len(parts) == 0 {
			return nil, nil
		}
		query := strings.Join(parts, " UNION ALL ")
		rows, err := db.QueryContext(ctx, query)
		if err != nil {
			return nil, fmt.Errorf("poll the progress: %w", err)
		}
		defer func() { _ = rows.Close() }() // its error is that of Err below
		next := map[Place]int64{}
		for rows.Next() {
			var place Place
			var offset int64
			if err := rows.Scan(&place.Topic, &place.Partition, &offset); err != nil {
				return nil, fmt.Errorf("poll the progress: %w", err)
			}
			next[place] = offset
		}
		return next, rows.Err()
	}
}

// Began reports whether the projection was ever begun: some partition had a watermark, or a process runs it.
func (s *Snapshot) Began(ctx context.Context, of Served) (bool, error) {
	var began bool
	err := s.Get(ctx, &began, `
SELECT EXISTS (SELECT FROM `+of.Table(schema.Progress)+` WHERE caught_up_at IS NOT NULL OR log_end_at IS NOT NULL)
	OR EXISTS (SELECT FROM public.projections WHERE projection = $1 AND run_at > now() - interval '10 seconds')`, of.Name)
	if err != nil {
		return false, fmt.Errorf("read whether %s was begun: %w", of.Name, err)
	}
	return began, nil
}
