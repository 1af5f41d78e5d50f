package record

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/schema"
)

const (
	firstWindow = time.Second // a busy log has a page of records in it
	widenBy     = 8
	widest      = 1 << 27 * time.Second // four years; what follows it is everything that is older
)

// newestIn are the newest records whose log time is at least $1 and less than $2. The index on log times says which pages
// may hold one, and of these only as many rows are kept as are wanted.
const newestIn = columns + ` WHERE created_at >= $1 AND created_at < $2 ORDER BY created_at DESC, partition DESC, "offset" DESC LIMIT $3`

// Newest returns up to limit records, those with the greatest log time first; of one time, those of the greatest partition
// and offset. Ids carry no such order: a caller may bring its own.
//
// It begins at the last log time of the progress rows, and looks at the second before it, then at windows that grow
// towards the past, until enough is found. So it reads the windows' pages, whatever the size of the table. It reads more
// where rows do not lie in about the order of the log (a table that was clustered by another key), and it reads every row
// of a window that holds a burst, and those of the last minute, which the index says nothing of until vacuum has been there;
// of a million rows that takes about a tenth of a second.
//
// While the epoch has not caught up, records are shown as far as it has come: rows past that are of the epoch before.
func Newest(ctx context.Context, s *projection.Snapshot, limit int) ([]Record, error) {
	var last struct {
		At       time.Time `db:"at"`
		CaughtUp bool      `db:"caught_up"`
	}
	if err := s.Get(ctx, &last, `
SELECT coalesce(max(last_created_at), now()) AS at, count(last_created_at) = 0 OR count(*) = count(caught_up_at) AS caught_up
FROM `+s.Of(Projection).Table(schema.Progress)); err != nil {
		return nil, fmt.Errorf("read the last log time: %w", err)
	}
	before := time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) // a log's clock that was set back leaves rows past the last time
	if !last.CaughtUp {
		before = last.At.Add(time.Microsecond)
	}
	var records []Record
	for window := firstWindow; len(records) < limit; window *= widenBy {
		from := last.At.Add(-window)
		if window > widest {
			from = time.Time{}
		}
		var rows []row
		if err := s.Select(ctx, &rows, newestIn, from, before, limit-len(records)); err != nil {
			return nil, fmt.Errorf("read the newest records: %w", err)
		}
		for _, r := range rows {
			records = append(records, r.record())
		}
		if window > widest {
			break
		}
		before = from
	}
	return records, nil
}
