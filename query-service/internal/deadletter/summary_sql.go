package deadletter

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/schema"
)

// Group counts the letters of one hour that share a reason and a producer.
type Group struct {
	ReasonCode string    `db:"reason_code"`
	Producer   string    `db:"producer"` // as the record's header names it; empty where it has none
	Hour       time.Time `db:"hour"`     // its beginning, by the log's own time of the records
	Letters    int64     `db:"letters"`
}

// Summary is what a search would find, counted.
type Summary struct {
	Groups  []Group // the newest hour first; of several projections one after the other
	Bounded bool    // of one projection only its newest letters were looked at
}

// Summarise counts the letters that f asks for among the newest mostSearched of each projection in the snapshot's scope.
func Summarise(ctx context.Context, s *projection.Snapshot, f Filter) (Summary, error) {
	var sum Summary
	for _, of := range s.Served() {
		edge, err := newestBound(ctx, s, of, Filter{State: Open}, newest)
		if err != nil {
			return Summary{}, err
		}
		downTo := time.Time{}
		if edge != nil {
			downTo, sum.Bounded = edge.At, true
		}
		var groups []Group
		err = s.Select(ctx, &groups, `
SELECT l.reason_code, coalesce(jsonb_path_query_first(l.headers, '$[*] ? (@.key == "`+event.HeaderProducer+`").value') #>> '{}', '') AS producer,
	date_trunc('hour', l.first_seen_at, 'UTC') AS hour, count(*) AS letters
FROM (SELECT * FROM `+of.Table(schema.DeadLetters)+` WHERE first_seen_at >= $5 AND ($6::int IS NULL OR partition = $6)
		ORDER BY first_seen_at DESC, partition DESC, "offset" DESC LIMIT $7) l
	LEFT JOIN public.dead_letter_decisions k USING (topic, partition, "offset")`+wanted+`
GROUP BY 1, 2, 3 ORDER BY 3 DESC, 4 DESC, 1, 2`,
			append(f.arguments(), downTo, f.Partition, mostSearched)...)
		if err != nil {
			return Summary{}, fmt.Errorf("summarise the dead letters of %s: %w", of.Name, err)
		}
		sum.Groups = append(sum.Groups, groups...)
	}
	return sum, nil
}
