package projection

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// All of it travels in one message: of what a read costs, most is messages. LOCK TABLE takes no
// snapshot, so the one that follows is chosen with the locks held. A message of several statements takes
// no parameters; what is put in is a number and a topic, whose characters position.Parse has checked.
const (
	begin = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
LOCK TABLE public.projection_progress, public.timestamp_records, public.dead_letters IN ACCESS SHARE MODE;
SELECT g.generation, g.epoch, `
	projected = `p.epoch, p.first_offset, p.next_offset FROM public.generations g LEFT JOIN public.projection_progress p ON `
	// Decisions belong to no generation, and are read from their log's start.
	decided = `CASE WHEN p.partition IS NOT NULL THEN g.epoch END, 0::bigint, p.next_offset
FROM public.generations g LEFT JOIN public.decision_progress p ON `
	noPartition  = `false`
	onePartition = `p.topic = '%s' AND p.partition = %d`
	serving      = ` WHERE g.state IN ('serving', 'swapping')`
)

// staleConnections is more than a pool keeps: after a restart of the database each of them fails once.
const staleConnections = 100

// open takes a connection and begins. The pool finds out that a connection is broken only when it is
// used; then the next one is taken, since nothing has happened yet.
func (r *Reader) open(ctx context.Context, at position.Position) (*Snapshot, error) {
	which := projected + noPartition
	switch at.Topic {
	case "":
	case topic.DeadLetterCommand.Name:
		which = fmt.Sprintf(decided+`p.partition = %d`, at.Partition)
	default:
		which = fmt.Sprintf(projected+onePartition, at.Topic, at.Partition)
	}
	for try := 1; ; try++ {
		conn, err := r.db.Connx(ctx)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		s := &Snapshot{conn: conn}
		var epoch, first, next *int64
		err = conn.QueryRowxContext(ctx, begin+which+serving).Scan(&s.Generation, &s.Epoch, &epoch, &first, &next)
		if err == nil {
			if epoch != nil {
				s.at = &Progress{*epoch, *first, *next}
			}
			return s, nil
		}
		_ = end(ctx, conn) // the error that counts is known
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil, errors.New("no generation is serving")
		case !broken(err) || try == staleConnections:
			return nil, fmt.Errorf("open a snapshot: %w", err)
		}
	}
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

// CaughtUpAt is the instant up to which everything accepted on topic is projected: the least over its
// partitions, nil where one was never level with its log or none is known.
func (s *Snapshot) CaughtUpAt(ctx context.Context, topic string) (*time.Time, error) {
	var least *time.Time
	err := s.Get(ctx, &least, `SELECT CASE WHEN count(*) = count(caught_up_at) THEN min(caught_up_at) END FROM public.projection_progress WHERE topic = $1`, topic)
	if err != nil {
		return nil, fmt.Errorf("read the watermark: %w", err)
	}
	return least, nil
}

// NextOffsets reads how far each partition is, for a Watch: a hint, outside any snapshot.
func NextOffsets(db *sqlx.DB) func(context.Context) (map[Place]int64, error) {
	return func(ctx context.Context) (map[Place]int64, error) {
		rows, err := db.QueryContext(ctx, `
SELECT topic, partition, next_offset FROM public.projection_progress
UNION ALL SELECT '`+topic.DeadLetterCommand.Name+`', partition, next_offset FROM public.decision_progress`)
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
