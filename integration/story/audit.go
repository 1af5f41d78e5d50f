package story

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
)

// Eventually tries again and again until there is no error, an error that is Final, or the context ends.
func Eventually(ctx context.Context, what string, try func(context.Context) error) error {
	for {
		err := try(ctx)
		var final finalError
		if err == nil || errors.As(err, &final) {
			return err
		}
		if ended := loop.Sleep(ctx, 20*time.Millisecond); ended != nil {
			return fmt.Errorf("%s: %w (%w)", what, err, ended)
		}
	}
}

// Final marks an error that no further try will mend.
func Final(err error) error { return finalError{err} }

type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// CleanAudit waits for an audit that began after this call and covers every partition, and returns what it found as an
// error. A database that is down is waited for.
func (p Projection) CleanAudit(ctx context.Context, db *sql.DB) error {
	var since time.Time
	if err := Eventually(ctx, "ask the database for its time", func(ctx context.Context) error {
		return db.QueryRowContext(ctx, "SELECT now()").Scan(&since)
	}); err != nil {
		return err
	}
	return Eventually(ctx, "wait for an audit", func(ctx context.Context) error {
		var missing int
		var findings string
		if err := db.QueryRowContext(ctx, `
			SELECT count(*) FILTER (WHERE a.audited_at IS NULL OR a.audited_at <= $2 OR a.epoch <> p.epoch),
			       coalesce(string_agg(p.partition || ': ' || a.finding, E'\n') FILTER (WHERE NOT a.ok AND a.audited_at > $2), '')
			FROM `+p.Schema+`.projection_progress p LEFT JOIN `+p.Schema+`.projection_audits a USING (topic, partition)
			WHERE p.topic = $1`, p.Topic, since).Scan(&missing, &findings); err != nil {
			return err
		}
		switch {
		case findings != "":
			return Final(errors.New("the audit found, by partition:\n" + findings))
		case missing > 0:
			return fmt.Errorf("%d partitions have no audit since %s", missing, since)
		}
		return nil
	})
}
