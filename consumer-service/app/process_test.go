package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/endpoints"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/timestamps"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/topic"
)

const partitions = 3

// installation is a database and topics of a test's own, and the definitions that its processes have.
type installation struct {
	config      Config
	definitions []*projection.Definition
	decisions   topic.Spec
	receipts    topic.Spec
	identity    topic.Spec // without a topic unless a test makes it
	reader      *kafka.Reader
	db          *sqlx.DB
	client      sarama.Client
	producer    sarama.SyncProducer
	made        []string // topics
}

// ownTopic is a topic like of, for one test alone.
func ownTopic(of topic.Spec, suffix string, partitions int) topic.Spec {
	of.Name, of.Partitions, of.ReplicationFactor = of.Name+suffix, partitions, 1
	return of
}

// install makes an installation whose database is empty, and whose topics are there.
func install(t *testing.T) *installation {
	t.Helper()
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(t, brokers, "TEST_KAFKA_BROKERS must name a real Kafka: make test starts one")
	suffix := "-" + uuid.NewString()[:8]
	own := func(of topic.Spec) topic.Spec { return ownTopic(of, suffix, partitions) }
	i := &installation{
		config: DefaultConfig(), decisions: own(topic.DeadLetterCommand), receipts: own(topic.ProjectionReceipt),
		identity:    ownTopic(topic.LogIdentity, suffix, 1),
		definitions: []*projection.Definition{timestamps.Definition(own(topic.TimestampCommand)), endpoints.Definition(own(topic.EndpointCommand))},
	}
	i.config.ServerPort, i.config.Brokers, i.config.URL = 0, strings.Split(brokers, ","), postgrestest.New(t)
	i.config.GroupID, i.config.AuditInterval = "app"+suffix, time.Second
	var err error
	i.db, err = postgres.Open(i.config.Postgres, "test", postgres.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.db.Close()) })
	i.reader = kafka.NewReader(i.config.Kafka, "test")
	t.Cleanup(func() { require.NoError(t, i.reader.Close()) })
	for _, of := range []topic.Spec{i.decisions, i.receipts, i.definitions[0].Topic, i.definitions[1].Topic} {
		i.ensure(t, of)
	}
	c := sarama.NewConfig()
	c.Version, c.Producer.Return.Successes, c.Producer.Partitioner = sarama.V2_8_0_0, true, sarama.NewManualPartitioner
	i.client, err = sarama.NewClient(i.config.Brokers, c)
	require.NoError(t, err)
	i.producer, err = sarama.NewSyncProducerFromClient(i.client)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, i.producer.Close())
		if admin, err := sarama.NewClusterAdminFromClient(i.client); err == nil {
			for _, of := range i.made {
				_ = admin.DeleteTopic(of) // a courtesy to the tests that follow
			}
		}
		require.NoError(t, i.client.Close())
	})
	return i
}

func (i *installation) ensure(t *testing.T, of topic.Spec) {
	t.Helper()
	i.made = append(i.made, of.Name)
	await.NoError(t, func() error { return i.reader.Ensure(t.Context(), of) })
	await.NoError(t, func() error { _, err := i.reader.StableEnds(t.Context(), of.Name, []int32{0, 1, 2}); return err })
}

func (i *installation) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := i.db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

func (i *installation) get(t *testing.T, into any, query string, args ...any) {
	t.Helper()
	require.NoError(t, i.db.GetContext(t.Context(), into, query, args...))
}

// send writes a record and returns its offset and log time.
func (i *installation) send(t *testing.T, of topic.Spec, partition int32, key string, value []byte) (int64, time.Time) {
	t.Helper()
	m := &sarama.ProducerMessage{Topic: of.Name, Partition: partition, Key: sarama.StringEncoder(key), Value: sarama.ByteEncoder(value)}
	_, offset, err := i.producer.SendMessage(m)
	require.NoError(t, err)
	return offset, m.Timestamp
}

func stamp() (key string, value []byte) {
	id := uuid.New()
	return id.String(), event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
}

// stamps sends n timestamps to a partition.
func (i *installation) stamps(t *testing.T, partition int32, n int) {
	t.Helper()
	for range n {
		key, value := stamp()
		i.send(t, i.definitions[0].Topic, partition, key, value)
	}
}

// puts sends n endpoints to the partitions of their keys.
func (i *installation) puts(t *testing.T, n int) {
	t.Helper()
	for range n {
		e := event.Endpoint{URL: "https://example.org/", Name: "one", Interval: time.Minute, Enabled: true}
		c := event.EndpointCommand{CommandID: uuid.New(), EndpointID: uuid.New(), Kind: event.EndpointPut, Document: event.AppendEndpoint(nil, e)}
		key := c.EndpointID.String()
		i.send(t, i.definitions[1].Topic, kafka.PartitionOf([]byte(key), partitions), key, event.AppendEndpointCommand(nil, c))
	}
}

// rows waits until a table has that many.
func (i *installation) rows(t *testing.T, table string, want int) {
	t.Helper()
	await.NoError(t, func() error {
		var n int
		if err := i.db.GetContext(t.Context(), &n, `SELECT count(*) FROM `+table); err != nil {
			return err
		}
		if n != want {
			return fmt.Errorf("%s has %d rows, not %d", table, n, want)
		}
		return nil
	})
}

// running is one process.
type running struct {
	base string
	stop func() error // returns what it ended with
}

// run starts a process that runs these projections, all unless named.
func (i *installation) run(t *testing.T, projections ...string) *running {
	t.Helper()
	c := i.config
	if c.Projections = projections; len(projections) == 0 {
		c.Projections = names(i.definitions)
	}
	ctx, cancel := context.WithCancel(t.Context())
	listening, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{
			Config: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Listening: func(a string) { listening <- a },
			definitions: i.definitions, decisions: i.decisions, receipts: i.receipts, identity: i.identity,
		})
	}()
	p := &running{stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	t.Cleanup(func() { _ = p.stop() })
	select {
	case address := <-listening:
		p.base = "http://" + address
	case err := <-ended:
		ended <- err
		require.NoError(t, err, "it ended before it listened")
	}
	return p
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// call makes a request and returns the status and the body.
func (p *running) call(t *testing.T, method, path string, body any) (int, []byte) {
	t.Helper()
	var sent io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		require.NoError(t, err)
		sent = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, p.base+path, sent)
	require.NoError(t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, raw
}

// must makes a request that is answered with that status, and reads the answer.
func (p *running) must(t *testing.T, status int, method, path string, body, into any) {
	t.Helper()
	got, raw := p.call(t, method, path, body)
	require.Equal(t, status, got, "%s %s: %s", method, path, raw)
	if into != nil {
		require.NoError(t, json.Unmarshal(raw, into), "%s", raw)
	}
}

func (p *running) ready(t *testing.T) {
	t.Helper()
	await.NoError(t, func() error {
		if status, body := p.call(t, http.MethodGet, "/ready", nil); status != http.StatusOK {
			return fmt.Errorf("unready: %s", body)
		}
		return nil
	})
}

// unready waits until the service says so, with these words.
func (p *running) unready(t *testing.T, words ...string) {
	t.Helper()
	await.NoError(t, func() error {
		status, body := p.call(t, http.MethodGet, "/ready", nil)
		if status == http.StatusOK {
			return fmt.Errorf("it is ready")
		}
		for _, w := range words {
			if !strings.Contains(string(body), w) {
				return fmt.Errorf("%s does not say %q", body, w)
			}
		}
		return nil
	})
}

func generationsOf(name string) string { return "/api/v1/projections/" + name + "/generations" }

// becomes waits until a generation has that state.
func (p *running) becomes(t *testing.T, name string, number int, want api.GenerationState) (g api.Generation) {
	t.Helper()
	await.NoError(t, func() error {
		status, raw := p.call(t, http.MethodGet, fmt.Sprint(generationsOf(name), "/", number), nil)
		if status != http.StatusOK {
			return fmt.Errorf("%d: %s", status, raw)
		}
		if err := json.Unmarshal(raw, &g); err != nil {
			return err
		}
		if g.State != want {
			return fmt.Errorf("generation %d of %s is %s: %s", number, name, g.State, g.Progress.Note)
		}
		return nil
	})
	return g
}

// audited requires that an audit finds nothing.
func (p *running) audited(t *testing.T, name string) {
	t.Helper()
	var a api.Audit
	p.must(t, http.StatusOK, http.MethodPost, "/api/v1/projections/"+name+"/audit", nil, &a)
	require.True(t, a.Ok, "%+v", a)
	require.Equal(t, name, a.Projection)
	require.Len(t, a.Partitions, partitions)
}

// told are all receipts that were published.
func (i *installation) told(t *testing.T) (all []event.Receipt) {
	t.Helper()
	for p := range int32(partitions) {
		ends, err := i.reader.StableEnds(t.Context(), i.receipts.Name, []int32{p})
		require.NoError(t, err)
		for at := int64(0); at < ends[p]; {
			records, next, err := i.reader.ReadFrom(t.Context(), i.receipts.Name, p, at)
			require.NoError(t, err)
			for _, r := range records {
				told, err := event.DecodeReceipt(r.Value)
				require.NoError(t, err)
				all = append(all, told)
			}
			at = next
		}
	}
	return all
}
