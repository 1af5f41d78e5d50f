package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

// A partition whose records Postgres refuses as a broken deploy stops, and keeps the service unready, while the other
// partitions of its projection and the other projection go on.
func TestAPartitionThatStoppedKeepsTheServiceUnready(t *testing.T) {
	t.Parallel()
	i := install(t)
	p := i.run(t)
	p.ready(t)
	i.exec(t, `ALTER TABLE timestamp_records ADD CONSTRAINT wrong CHECK (partition <> 1)`)
	i.stamps(t, 1, 150)
	p.unready(t, "timestamps partitions", "1: too many of the last records were refused by Postgres")

	for n := range 3 {
		i.stamps(t, int32(2*(n%2)), 40)
		i.puts(t, 5)
		i.rows(t, "timestamp_records", 40*(n+1))
		i.rows(t, "endpoints.current_endpoints", 5*(n+1))
		p.unready(t, "1: too many of the last records were refused by Postgres")
	}
	_, ready := p.call(t, http.MethodGet, "/ready", nil)
	require.NotContains(t, string(ready), "endpoints partitions")
	var letters int
	i.get(t, &letters, `SELECT count(*) FROM dead_letters`)
	require.LessOrEqual(t, letters, 100, "a tenth of the last 1,000 may be poison")

	i.exec(t, `ALTER TABLE timestamp_records DROP CONSTRAINT wrong`)
	i.rows(t, "timestamp_records", 270-letters)
	p.ready(t)
	i.rows(t, "dead_letters", letters)
	p.audited(t, "timestamps")
	require.NoError(t, p.stop())
}

// Two processes run one projection each. Either takes requests for both; what nobody runs is told so.
func TestTwoProcessesRunTheirOwnProjections(t *testing.T) {
	t.Parallel()
	i := install(t)
	stamps, puts := i.run(t, "timestamps"), i.run(t, "endpoints")
	stamps.ready(t)
	puts.ready(t)
	i.stamps(t, 0, 20)
	i.puts(t, 20)
	i.rows(t, "timestamp_records", 20)
	i.rows(t, "endpoints.endpoint_commands", 20)
	for name, other := range map[string]*running{"timestamps": puts, "endpoints": stamps} {
		_, ready := other.call(t, http.MethodGet, "/ready", nil)
		require.NotContains(t, string(ready), name+" ", "it does not run it")
		other.audited(t, name)
		var g api.Generation
		other.must(t, http.StatusAccepted, http.MethodPost, generationsOf(name), api.Rebuild{}, &g)
		require.Equal(t, name, g.Projection)
		other.becomes(t, name, g.Generation, api.Serving)
		other.must(t, http.StatusAccepted, http.MethodDelete, fmt.Sprint(generationsOf(name), "/0"), nil, nil)
		await.NoError(t, func() error {
			if status, _ := other.call(t, http.MethodGet, fmt.Sprint(generationsOf(name), "/0"), nil); status != http.StatusNotFound {
				return fmt.Errorf("generation 0 of %s is still there: %d", name, status)
			}
			return nil
		})
	}

	require.NoError(t, puts.stop())
	i.exec(t, `UPDATE projections SET run_at = run_at - interval '11 seconds' WHERE projection = 'endpoints'`) // so much later
	var of api.Projection
	stamps.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections/endpoints", nil, &of)
	require.False(t, of.Running)
	stamps.must(t, http.StatusOK, http.MethodGet, generationsOf("endpoints"), nil, nil)
	for _, request := range []struct{ method, path string }{
		{http.MethodPost, generationsOf("endpoints")},
		{http.MethodPost, generationsOf("endpoints") + "/0/proof"},
		{http.MethodPost, generationsOf("endpoints") + "/0/swap"},
		{http.MethodDelete, generationsOf("endpoints") + "/0"},
		{http.MethodPost, "/api/v1/projections/endpoints/audit"},
	} {
		status, raw := stamps.call(t, request.method, request.path, nil)
		require.Equal(t, http.StatusServiceUnavailable, status, "%s: %s", request, raw)
		require.Contains(t, string(raw), "/problems/not-running")
		require.Contains(t, string(raw), "no process runs endpoints: start a consumer-service whose PROJECTIONS names it")
	}
	status, raw := stamps.call(t, http.MethodGet, generationsOf("checks"), nil)
	require.Equal(t, http.StatusNotFound, status)
	require.Contains(t, string(raw), "there are timestamps, endpoints")
	stamps.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections/timestamps", nil, &of)
	require.True(t, of.Running)

	// A rebuild of all is one of those that somebody runs.
	var all api.GenerationList
	stamps.must(t, http.StatusAccepted, http.MethodPost, "/api/v1/rebuilds", api.RebuildAll{}, &all)
	require.Len(t, all.Generations, 1)
	require.Equal(t, "timestamps", all.Generations[0].Projection)
	stamps.becomes(t, "timestamps", all.Generations[0].Generation, api.Serving)
	require.NoError(t, stamps.stop())
}

// A projection that refuses its log leaves its consumer group and says why; the other one goes on, and so does the process.
func TestARefusalIsOfOneProjection(t *testing.T) {
	t.Parallel()
	i := install(t)
	p := i.run(t)
	p.ready(t)
	i.stamps(t, 0, 5)
	i.puts(t, 5)
	i.rows(t, "timestamp_records", 5)
	require.NoError(t, p.stop())

	i.exec(t, `UPDATE projection_progress SET last_record_hash = last_record_hash + 1 WHERE partition = 0`) // of another log
	i.stamps(t, 0, 5)
	i.puts(t, 5)
	p = i.run(t)
	p.unready(t, "timestamps assignment", "is another than the one that was projected")
	i.rows(t, "endpoints.current_endpoints", 10)
	_, ready := p.call(t, http.MethodGet, "/ready", nil)
	require.NotContains(t, string(ready), "endpoints ")
	i.rows(t, "timestamp_records", 5)
	var of api.Projection
	await.NoError(t, func() error {
		p.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections/timestamps", nil, &of)
		if !strings.Contains(of.Refusal, "is another than the one that was projected") {
			return fmt.Errorf("the refusal is %q", of.Refusal)
		}
		return nil
	})
	p.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections/endpoints", nil, &of)
	require.Empty(t, of.Refusal)
	require.True(t, of.Running)
	await.NoError(t, func() error { return i.members(i.config.GroupID, 0) })
	require.NoError(t, i.members(i.config.GroupID+".endpoints", 1))
	await.NoError(t, func() error {
		_, metrics := p.call(t, http.MethodGet, "/metrics", nil)
		if !strings.Contains(string(metrics), fmt.Sprintf(`tidemark_log_fault{fault="replaced",topic=%q} 1`, i.definitions[0].Topic.Name)) {
			return fmt.Errorf("no metric says that the topic was replaced")
		}
		return nil
	})
	require.NoError(t, p.stop())

	i.exec(t, `UPDATE projection_progress SET last_record_hash = last_record_hash - 1 WHERE partition = 0`)
	p = i.run(t)
	p.ready(t)
	i.rows(t, "timestamp_records", 10)
	await.NoError(t, func() error {
		p.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections/timestamps", nil, &of)
		if of.Refusal != "" {
			return fmt.Errorf("it still says %q", of.Refusal)
		}
		return nil
	})
	require.NoError(t, p.stop())
}

// members says where a consumer group has another number of members.
func (i *installation) members(group string, want int) error {
	coordinator, err := i.client.Coordinator(group)
	if err != nil {
		return fmt.Errorf("find the coordinator of %s: %w", group, err)
	}
	res, err := coordinator.DescribeGroups(&sarama.DescribeGroupsRequest{Groups: []string{group}})
	if err != nil {
		return fmt.Errorf("describe %s: %w", group, err)
	}
	if n := len(res.Groups[0].Members); n != want {
		return fmt.Errorf("%s has %d members, not %d", group, n, want)
	}
	return nil
}

// A rebuild of all projections is a queue: one is filled at a time.
func TestARebuildOfAllIsAQueue(t *testing.T) {
	t.Parallel()
	i := install(t)
	p := i.run(t)
	p.ready(t)
	for partition := range int32(partitions) {
		i.stamps(t, partition, 20)
	}
	i.puts(t, 40)
	i.rows(t, "timestamp_records", 60)
	i.rows(t, "endpoints.endpoint_commands", 40)
	var all api.GenerationList
	p.must(t, http.StatusAccepted, http.MethodPost, "/api/v1/rebuilds", api.RebuildAll{}, &all)
	require.Len(t, all.Generations, 2)
	first, second := all.Generations[0], all.Generations[1]
	require.Equal(t, api.Queued, first.State)
	require.Equal(t, api.Queued, second.State)
	require.NotEqual(t, first.Projection, second.Projection)

	queued := 0
	await.NoError(t, func() error {
		var states []struct {
			Number int    `db:"generation"`
			State  string `db:"state"`
		}
		if err := i.db.SelectContext(t.Context(), &states, `SELECT generation, state FROM projection_generations WHERE generation > 0 ORDER BY generation`); err != nil {
			return err
		}
		at := map[int]string{}
		for _, s := range states {
			at[s.Number] = s.State
		}
		if at[first.Generation] != "serving" {
			require.Equal(t, "queued", at[second.Generation], "the first one is %s", at[first.Generation])
			queued++
		}
		if at[second.Generation] != "serving" {
			return fmt.Errorf("%v", at)
		}
		return nil
	})
	require.Positive(t, queued)
	for _, g := range all.Generations {
		p.becomes(t, g.Projection, 0, api.Standby)
		p.audited(t, g.Projection)
	}
	status, raw := p.call(t, http.MethodPost, "/api/v1/rebuilds", api.RebuildAll{})
	require.Equal(t, http.StatusConflict, status, "%s", raw)
	require.Contains(t, string(raw), "generation 0 is kept as standby")
	require.NoError(t, p.stop())
}

// A projection that a test adds is rebuilt, audited, measured, shown and told of in receipts like the others.
func TestADefinitionThatIsAddedNeedsNothingElse(t *testing.T) {
	t.Parallel()
	i := install(t)
	require.NoError(t, schema.Apply(t.Context(), i.db))
	i.exec(t, `
SELECT make_projection_schema('widgets');
CREATE TABLE widgets.widget_orders (widget text NOT NULL, number bigint NOT NULL, created_at timestamptz NOT NULL, partition integer NOT NULL, "offset" bigint NOT NULL, PRIMARY KEY (widget, number));
CREATE TABLE widgets.widgets_now (widget text NOT NULL PRIMARY KEY, orders bigint NOT NULL, partition integer NOT NULL, "offset" bigint NOT NULL);`)
	of := topic.Spec{Name: strings.Replace(i.receipts.Name, "projection.receipt", "widget.order", 1), Partitions: partitions, ReplicationFactor: 1}
	i.ensure(t, of)
	i.definitions = append(i.definitions, widgets(of))
	p := i.run(t)
	p.ready(t)
	for n := range 30 {
		key := fmt.Sprint("widget-", n%4)
		value, err := json.Marshal(order{key, int64(n)})
		require.NoError(t, err)
		i.send(t, of, kafka.PartitionOf([]byte(key), partitions), key, value)
	}
	i.rows(t, "widgets.widget_orders", 30)
	i.rows(t, "widgets.widgets_now", 4)

	var all api.ProjectionList
	p.must(t, http.StatusOK, http.MethodGet, "/api/v1/projections", nil, &all)
	require.Contains(t, all.Projections, api.Projection{
		Projection: "widgets", Topic: of.Name, Schema: "widgets", Running: true, Tables: []string{"widget_orders", "widgets_now"},
	})
	p.audited(t, "widgets")
	var g api.Generation
	p.must(t, http.StatusAccepted, http.MethodPost, generationsOf("widgets"), api.Rebuild{}, &g)
	require.Equal(t, "widgets_g"+fmt.Sprint(g.Generation), g.Schema)
	g = p.becomes(t, "widgets", g.Generation, api.Serving)
	require.Len(t, g.Proof.Tables, 3)
	i.rows(t, "widgets.widgets_now", 4)
	p.audited(t, "widgets")

	_, metrics := p.call(t, http.MethodGet, "/metrics", nil)
	for _, series := range []string{
		`tidemark_projection_records_total{outcome="applied",projection="widgets"} 30`,
		`tidemark_projection_lag_records{partition="0",projection="widgets"} 0`,
		`tidemark_generation_serving{projection="widgets"} ` + fmt.Sprint(g.Generation),
		`tidemark_receipts_published_total{projection="widgets"}`,
		`tidemark_projection_audit_ok{projection="widgets"} 1`,
	} {
		require.True(t, bytes.Contains(metrics, []byte(series)), "%s is not in the metrics:\n%s", series, onlyOf(string(metrics), "widgets"))
	}
	await.NoError(t, func() error {
		var covered int64
		for _, r := range i.told(t) {
			if r.Topic == of.Name && r.Served && r.Group == i.config.GroupID+".widgets" {
				covered += r.Next - r.From
			}
		}
		if covered < 30 {
			return fmt.Errorf("receipts tell of %d offsets", covered)
		}
		return nil
	})
	require.NoError(t, p.stop())
}

func onlyOf(metrics, name string) string {
	var lines []string
	for _, l := range strings.Split(metrics, "\n") {
		if strings.Contains(l, name) && !strings.Contains(l, "_bucket") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}

type order struct {
	Widget string `json:"widget"`
	Number int64  `json:"number"`
}

func widgets(of topic.Spec) *projection.Definition {
	type column = projection.Column[order]
	return &projection.Definition{
		Name: "widgets", Topic: of, Kind: projection.Keyed,
		Main: &projection.MainTable[order]{
			Name:   "widget_orders",
			Decode: func(r kafka.Record) (o order, err error) { return o, json.Unmarshal(r.Value, &o) },
			Key: []column{
				{Name: "widget", Type: projection.Text, Append: func(a *postgres.Array, o *order) { a.Text(o.Widget) }},
				{Name: "number", Type: projection.Bigint, Append: func(a *postgres.Array, o *order) { a.Int8(o.Number) }},
			},
			Compare: func(a, b *order) int {
				if c := strings.Compare(a.Widget, b.Widget); c != 0 {
					return c
				}
				return int(a.Number - b.Number)
			},
			RecordKey: func(o *order) string { return o.Widget },
			Fold: func(ctx context.Context, tx *sqlx.Tx, in string, applied []projection.Applied[order]) error {
				for _, a := range applied {
					if _, err := tx.ExecContext(ctx, `INSERT INTO `+postgres.Qualified(in, "widgets_now")+` AS w VALUES ($1, 1, $2, $3)
						ON CONFLICT (widget) DO UPDATE SET orders = w.orders + 1, partition = $2, "offset" = $3`, a.Value.Widget, a.Partition, a.Offset); err != nil {
						return err
					}
				}
				return nil
			},
			Label: func(o *order) string { return o.Widget },
		},
		Derived: []projection.Derived{{Name: "widgets_now", Key: []string{"widget"}}},
	}
}
