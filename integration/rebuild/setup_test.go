package rebuild_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

func TestMain(m *testing.M) { os.Exit(story.Main(m)) }

// size reads a number from the environment: CI runs a story small, and whoever wants to runs it large.
func size(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return n
}

// generation is what consumer-service says of one.
type generation struct {
	Generation int    `json:"generation"`
	State      string `json:"state"`
	Schema     string `json:"schema"`
	Group      string `json:"group"`
	SwapWanted bool   `json:"swap_wanted"`
	Progress   struct {
		Done, Total, Lag int64
		Bottleneck       string
		Note             string
	} `json:"progress"`
	Proof *struct {
		OK          bool
		Finding     string
		Differences []struct {
			Table, Key         string
			Serving, Candidate *string
		}
	} `json:"proof"`
}

// api speaks to consumer-service as an operator does.
type api struct {
	t       *testing.T
	client  *story.Client
	service *stack.Service
}

// readyToSwap fills the log with n records and rebuilds them up to where somebody must ask for the swap.
func readyToSwap(t *testing.T, s *story.Story, n int) (api, generation) {
	t.Helper()
	consumer := s.Consumer("")
	fill(t, s.Log, n)
	s.RequireProjected(s.DB)
	op := api{t, s.Client, consumer}
	g := op.start(`{"swap":false}`)
	return op, op.untilState(g.Generation, "ready")
}

func (a api) do(method, path, body string) (int, []byte) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), story.Patience)
	defer cancel()
	answer, err := a.client.Do(ctx, method, a.service.URL()+path, body, "Content-Type", "application/json")
	require.NoError(a.t, err)
	return answer.Status, answer.Body
}

func (a api) accepted(method, path, body string) generation {
	a.t.Helper()
	status, answer := a.do(method, path, body)
	require.Equal(a.t, http.StatusAccepted, status, string(answer))
	var g generation
	require.NoError(a.t, json.Unmarshal(answer, &g))
	return g
}

func (a api) start(body string) generation {
	a.t.Helper()
	return a.accepted(http.MethodPost, "/api/v1/projections/timestamps/generations", body)
}

func (a api) swap(number int) {
	a.t.Helper()
	a.accepted(http.MethodPost, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d/swap", number), "")
}

func (a api) drop(number int) {
	a.t.Helper()
	a.accepted(http.MethodDelete, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d", number), "")
}

// all lists the generations; nil while the service does not answer.
func (a api) all(ctx context.Context) []generation {
	answer, err := a.client.Get(ctx, a.service.URL()+"/api/v1/projections/timestamps/generations")
	if err != nil || answer.Status != http.StatusOK {
		return nil
	}
	var list struct{ Generations []generation }
	if json.Unmarshal(answer.Body, &list) != nil {
		return nil
	}
	return list.Generations
}

// until waits until what is listed is as wanted.
func (a api) until(what string, ok func([]generation) bool) []generation {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 3*story.Patience)
	defer cancel()
	var all []generation
	require.NoError(a.t, story.Eventually(ctx, what, func(ctx context.Context) error {
		if all = a.all(ctx); all != nil && ok(all) {
			return nil
		}
		return fmt.Errorf("the generations are %+v", all)
	}))
	return all
}

func (a api) untilServes(number int) {
	a.t.Helper()
	a.until(fmt.Sprintf("wait until generation %d serves", number), func(all []generation) bool {
		return all[0].Generation == number && all[0].State == "serving"
	})
}

func (a api) untilState(number int, state string) generation {
	a.t.Helper()
	var found generation
	a.until(fmt.Sprintf("wait until generation %d is %s", number, state), func(all []generation) bool {
		for _, g := range all {
			if g.Generation == number && g.State == state {
				found = g
				return true
			}
		}
		return false
	})
	return found
}

func (a api) untilGone(number int) {
	a.t.Helper()
	a.until(fmt.Sprintf("wait until generation %d is gone", number), func(all []generation) bool {
		for _, g := range all {
			if g.Generation == number {
				return false
			}
		}
		return true
	})
}

// untilProved waits for the proof that was asked for.
func (a api) untilProved(number int) generation {
	a.t.Helper()
	var found generation
	a.until(fmt.Sprintf("wait for the proof of generation %d", number), func(all []generation) bool {
		for _, g := range all {
			if g.Generation == number && g.Proof != nil {
				found = g
				return true
			}
		}
		return false
	})
	return found
}

// fill writes n commands of their own, and one record in a thousand that nobody can read.
func fill(t *testing.T, log *story.Log, n int) {
	t.Helper()
	at := time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC)
	for sent := 0; sent < n; {
		var messages []story.Message
		for range min(5000, n-sent) {
			sent++
			id, err := uuid.NewV7()
			require.NoError(t, err)
			value := fmt.Appendf(nil, `{"command_id":%q,"event_timestamp":%q}`, id, at.Add(time.Duration(sent)*time.Microsecond).Format(time.RFC3339Nano))
			if sent%1000 == 0 {
				value = []byte("poison")
			}
			messages = append(messages, story.Message{Partition: int32(sent % 12), Key: id.String(), Value: value})
		}
		_, err := log.Write(messages...)
		require.NoError(t, err)
	}
}

// traces are what a rebuild could leave behind in the database.
func traces(t *testing.T, s *story.Story) string {
	t.Helper()
	var found []string
	rows, err := s.DB.QueryContext(t.Context(), `
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '_g[0-9]+$'
UNION ALL SELECT 'generation ' || projection || ' ' || generation || ' ' || state FROM public.projection_generations WHERE state <> 'serving'
UNION ALL SELECT 'progress of ' || generation FROM public.generation_progress
UNION ALL SELECT 'worker of ' || generation FROM public.generation_workers`)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	for rows.Next() {
		var one string
		require.NoError(t, rows.Scan(&one))
		found = append(found, one)
	}
	require.NoError(t, rows.Err())
	groups, err := s.Log.Admin().ListConsumerGroups()
	require.NoError(t, err)
	for g := range groups {
		if strings.HasPrefix(g, s.Group+".g") {
			found = append(found, "group "+g)
		}
	}
	return strings.Join(found, ", ")
}
