package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// Both statements travel in one message. LOCK TABLE takes no snapshot, so the one that follows is
// taken with the locks held.
const openSnapshot = `
LOCK TABLE public.projection_progress, public.timestamp_records, public.dead_letters IN ACCESS SHARE MODE;
SELECT g.generation, g.epoch AS generation_epoch, p.topic, p.partition, p.epoch, p.first_offset, p.next_offset, p.caught_up_at
FROM public.generations g LEFT JOIN public.projection_progress p ON true
WHERE g.state = 'serving'`

func open(ctx context.Context, tx *sqlx.Tx) (*Snapshot, error) {
	rows, err := tx.QueryContext(ctx, openSnapshot)
	if err != nil {
		return nil, fmt.Errorf("open a snapshot: %w", err)
	}
	defer func() { _ = rows.Close() }() // its error is that of Err below
	s := &Snapshot{tx: tx, progress: map[Place]Progress{}}
	serving := false
	for rows.Next() {
		var topic sql.NullString
		var partition sql.NullInt32
		var epoch, first, next sql.NullInt64
		var caughtUp *time.Time
		if err := rows.Scan(&s.Generation, &s.Epoch, &topic, &partition, &epoch, &first, &next, &caughtUp); err != nil {
			return nil, fmt.Errorf("read the progress: %w", err)
		}
		serving = true
		if topic.Valid {
			s.progress[Place{topic.String, partition.Int32}] = Progress{epoch.Int64, first.Int64, next.Int64, caughtUp}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the progress: %w", err)
	}
	if !serving {
		return nil, errors.New("no generation is serving")
	}
	return s, nil
}

// NextOffsets reads how far each partition is, for a Watch: a hint, outside any snapshot.
func NextOffsets(db *sqlx.DB) func(context.Context) (map[Place]int64, error) {
	return func(ctx context.Context) (map[Place]int64, error) {
		rows, err := db.QueryContext(ctx, `SELECT topic, partition, next_offset FROM public.projection_progress`)
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
