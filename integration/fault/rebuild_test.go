package fault_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/loop"
)

// rebuilt is one rebuild that somebody dies in.
type rebuilt struct {
	*world
	deployment *deployment
	r          *rand.Rand

	number int
	point  bool
	held   *sql.Tx // keeps the rebuild where it is
	holder *sql.Conn
}

type listed struct {
	Generation int
	State      string
	SwapWanted bool `json:"swap_wanted"`
	Progress   struct{ Done int64 }
	Proof      *struct {
		OK      bool
		Finding string
	}
}

// ask sends a request to a consumer that answers, and tries again while none does.
func (b *rebuilt) ask(ctx context.Context, method, path, body string, wanted ...int) (answer story.Answer, err error) {
	err = story.Eventually(ctx, method+" "+path, func(ctx context.Context) error {
		m := b.deployment.pick(b.r)
		short, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		answer, err = b.Client.Do(short, method, m.service.URL()+path, body, "Content-Type", "application/json")
		if err != nil {
			return err
		}
		for _, status := range wanted {
			if answer.Status == status {
				return nil
			}
		}
		err = fmt.Errorf("answered %s", answer)
		if answer.Status < 500 && answer.Status != http.StatusConflict {
			return story.Final(err)
		}
		return err
	})
	return answer, err
}

func (b *rebuilt) list(ctx context.Context) ([]listed, error) {
	answer, err := b.ask(ctx, http.MethodGet, "/api/v1/projections/timestamps/generations", "", http.StatusOK)
	if err != nil {
		return nil, err
	}
	var list struct{ Generations []listed }
	return list.Generations, json.Unmarshal(answer.Body, &list)
}

func (b *rebuilt) find(ctx context.Context, number int) (*listed, error) {
	all, err := b.list(ctx)
	for _, g := range all {
		if g.Generation == number {
			return &g, err
		}
	}
	return nil, err
}

// state waits until the generation is in one of the states, as the table has it.
func (b *rebuilt) state(ctx context.Context, number int, wanted ...string) error {
	for {
		var state string
		err := b.deployment.db.QueryRowContext(ctx, `SELECT state FROM public.projection_generations WHERE projection = 'timestamps' AND generation = $1`, number).Scan(&state)
		for _, w := range wanted {
			if err == nil && state == w {
				return nil
			}
		}
		if loop.Sleep(ctx, time.Millisecond) != nil {
			return fmt.Errorf("wait until generation %d is %v: it is %q (%w)", number, wanted, state, errors.Join(err, ctx.Err()))
		}
	}
}

// start begins a rebuild, in place of one that an earlier death may have begun already.
func (b *rebuilt) start(ctx context.Context, body string) error {
	answer, err := b.ask(ctx, http.MethodPost, "/api/v1/projections/timestamps/generations", body, http.StatusAccepted)
	if err != nil {
		return err
	}
	var g listed
	if err := json.Unmarshal(answer.Body, &g); err != nil {
		return err
	}
	b.number = g.Generation
	return nil
}

// hold takes a lock that keeps the rebuild from going on.
func (b *rebuilt) hold(ctx context.Context, statement string) error {
	conn, err := b.deployment.db.Conn(ctx)
	if err != nil {
		return err
	}
	b.holder = conn
	if b.held, err = conn.BeginTx(ctx, nil); err != nil {
		return err
	}
	_, err = b.held.ExecContext(ctx, statement)
	return err
}

func (b *rebuilt) letGo() {
	if b.held != nil {
		_ = b.held.Rollback() // its server may be gone, and the lock with it
	}
	if b.holder != nil {
		_ = b.holder.Close()
	}
	b.held, b.holder = nil, nil
}

// waitsFor is waits within a limit.
func (b *rebuilt) waitsFor(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return b.waits(ctx)
}

// waits waits until some process waits for the lock that is held.
func (b *rebuilt) waits(ctx context.Context) error {
	return story.Eventually(ctx, "wait until the rebuild waits", func(ctx context.Context) error {
		var n int
		err := b.deployment.db.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name LIKE '%rebuild'`).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("nothing waits")
		}
		return err
	})
}

// clean waits until nothing is under way.
func (b *rebuilt) clean(ctx context.Context) error {
	return story.Eventually(ctx, "wait until no rebuild is under way", func(ctx context.Context) error {
		all, err := b.list(ctx)
		if err != nil {
			return err
		}
		for _, g := range all {
			if g.State != "serving" && g.State != "standby" || g.SwapWanted {
				return fmt.Errorf("the generations are %+v", all)
			}
		}
		return nil
	})
}

const blueGreen = `{"replace_standby":true}`

func (b *rebuilt) begin(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, between(b.r, 0, 40*time.Millisecond))
	defer cancel()
	_ = b.start(short, blueGreen) // it may be cut short: it is there, or it is not
	return nil
}

func (b *rebuilt) filling(ctx context.Context) error {
	if err := b.start(ctx, blueGreen); err != nil {
		return err
	}
	return story.Eventually(ctx, "wait until something was filled", func(ctx context.Context) error {
		g, err := b.find(ctx, b.number)
		if err == nil && g != nil && g.State == "filling" && g.Progress.Done == 0 {
			err = errors.New("nothing yet")
		}
		return err
	})
}

func (b *rebuilt) schema() string { return fmt.Sprintf("timestamps_g%d", b.number) }

func (b *rebuilt) indexing(ctx context.Context) error {
	if err := b.start(ctx, blueGreen); err != nil {
		return err
	}
	// As a vacuum would: writers go on, an index has to wait.
	if err := b.hold(ctx, `LOCK TABLE `+b.schema()+`.timestamp_records IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		return err
	}
	if err := b.state(ctx, b.number, "indexing"); err != nil {
		return err
	}
	return b.waits(ctx)
}

func (b *rebuilt) ready(ctx context.Context) error {
	if err := b.start(ctx, `{"replace_standby":true,"swap":false}`); err != nil {
		return err
	}
	return b.state(ctx, b.number, "ready")
}

func (b *rebuilt) request(ctx context.Context) error {
	_, err := b.ask(ctx, http.MethodPost, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d/swap", b.number), "", http.StatusAccepted)
	return err
}

func (b *rebuilt) proving(ctx context.Context) error {
	if err := b.ready(ctx); err != nil {
		return err
	}
	if err := b.hold(ctx, `LOCK TABLE `+b.schema()+`.dead_letters IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if err := b.request(ctx); err != nil {
		return err
	}
	return b.waits(ctx)
}

func (b *rebuilt) fencing(ctx context.Context) error {
	if err := b.ready(ctx); err != nil {
		return err
	}
	if err := b.request(ctx); err != nil {
		return err
	}
	for {
		if err := b.hold(ctx, `SELECT FROM public.projection_progress WHERE partition = 7 FOR UPDATE`); err != nil {
			return err
		}
		if waited := b.waitsFor(ctx, 15*time.Second); waited == nil || ctx.Err() != nil {
			return waited
		}
		// Of two records with one id the candidate may have read the one that the serving generation is kept from: the proof
		// then waits for as long as the partition is held. So it is let go for a moment, in which the swap may come through.
		b.letGo()
		if err := loop.Sleep(ctx, between(b.r, 50*time.Millisecond, 500*time.Millisecond)); err != nil {
			return err
		}
		if g, err := b.find(ctx, b.number); err != nil || g == nil || g.State == "serving" {
			return err
		}
	}
}

func (b *rebuilt) swapping(ctx context.Context) error {
	if err := b.ready(ctx); err != nil {
		return err
	}
	if err := b.hold(ctx, `LOCK TABLE public.dead_letters IN ACCESS SHARE MODE`); err != nil {
		return err
	}
	if err := b.request(ctx); err != nil {
		return err
	}
	var serving int
	if err := b.deployment.db.QueryRowContext(ctx, `SELECT generation FROM public.projection_generations WHERE projection = 'timestamps' AND state IN ('serving', 'swapping')`).Scan(&serving); err != nil {
		return err
	}
	return b.state(ctx, serving, "swapping")
}

func (b *rebuilt) swapped(ctx context.Context) error {
	if err := b.start(ctx, blueGreen); err != nil {
		return err
	}
	return b.state(ctx, b.number, "serving")
}

func (b *rebuilt) dropping(ctx context.Context) error {
	if err := b.ready(ctx); err != nil {
		return err
	}
	if err := b.hold(ctx, `LOCK TABLE `+b.schema()+`.timestamp_records IN ACCESS SHARE MODE`); err != nil {
		return err
	}
	if _, err := b.ask(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d", b.number), "", http.StatusAccepted); err != nil {
		return err
	}
	return b.waits(ctx)
}

func (b *rebuilt) toAPoint(ctx context.Context) error {
	b.point = true
	at := time.Now().Add(-between(b.r, 0, time.Second)).UTC().Format(time.RFC3339Nano)
	return b.start(ctx, `{"to":{"time":"`+at+`"}}`)
}

func (b *rebuilt) goingBack(ctx context.Context) error {
	all, err := b.list(ctx)
	if err != nil {
		return err
	}
	for _, g := range all {
		if g.State == "standby" {
			b.number = g.Generation
			return b.request(ctx)
		}
	}
	return b.swapped(ctx) // there is no standby yet
}

// finish waits until the rebuild has come to its end by itself.
func (b *rebuilt) finish(ctx context.Context) error {
	return story.Eventually(ctx, "wait for the rebuild's end", func(ctx context.Context) error {
		all, err := b.list(ctx)
		if err != nil {
			return err
		}
		for _, g := range all {
			switch {
			case g.Proof != nil && !g.Proof.OK:
				return story.Final(fmt.Errorf("the proof of generation %d does not hold: %s", g.Generation, g.Proof.Finding))
			case g.State == "ready" && !g.SwapWanted:
				// Its request was never heard: ask again.
				if _, err := b.ask(ctx, http.MethodPost, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d/swap", g.Generation), "", http.StatusAccepted, http.StatusConflict); err != nil {
					return err
				}
				return errors.New("wished again")
			case g.State != "serving" && g.State != "standby" && g.State != "held" || g.SwapWanted:
				return fmt.Errorf("the generations are %+v", all)
			}
		}
		return nil
	})
}

// cancel ends every generation that is no standby and does not serve, and waits until it is gone.
func (b *rebuilt) cancel(ctx context.Context) error {
	return story.Eventually(ctx, "cancel the rebuild", func(ctx context.Context) error {
		all, err := b.list(ctx)
		if err != nil {
			return err
		}
		for _, g := range all {
			switch g.State {
			case "serving":
				continue
			case "standby":
				if !g.SwapWanted {
					continue
				}
			case "swapping", "dropping":
				return fmt.Errorf("the generations are %+v", all)
			}
			if _, err := b.ask(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d", g.Generation), "", http.StatusAccepted, http.StatusNotFound, http.StatusConflict); err != nil {
				return err
			}
			return errors.New("just cancelled")
		}
		return nil
	})
}

// left looks for what a rebuild may leave behind: after its end there is what serves, and perhaps a standby.
func (b *rebuilt) left(ctx context.Context) error {
	if b.point { // it is held until it is dropped
		if err := b.cancel(ctx); err != nil {
			return err
		}
	}
	return story.Eventually(ctx, "wait until nothing is left behind", func(ctx context.Context) error {
		rows, err := b.deployment.db.QueryContext(ctx, `
SELECT 'schema ' || n.nspname FROM pg_namespace n WHERE n.nspname ~ '_g[0-9]+$' AND NOT EXISTS (SELECT FROM public.projection_generations g WHERE g.schema_name = n.nspname)
UNION ALL SELECT g.projection || ' ' || g.state || ' ' || g.generation FROM public.projection_generations g WHERE g.state NOT IN ('serving', 'standby')
UNION ALL SELECT 'nothing serves' WHERE NOT EXISTS (SELECT FROM public.projection_generations g WHERE g.state = 'serving' AND g.schema_name = 'public')`)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }() // Err tells
		var found []string
		for rows.Next() {
			var one string
			if err := rows.Scan(&one); err != nil {
				return err
			}
			found = append(found, one)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if len(found) > 0 {
			return errors.New(strings.Join(found, ", "))
		}
		return nil
	})
}
