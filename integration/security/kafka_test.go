package security_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { os.Exit(story.Main(m)) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

const user, password = "tidemark", "correct-horse-battery"

// secured is a broker that wants TLS and SASL, and who signed its certificate.
type secured struct {
	*stack.Kafka
	ca *certstest.Authority
}

// startSecured starts a broker for this test alone.
func startSecured(t *testing.T) secured {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // the first one on a machine fetches Kafka
	defer cancel()
	ca := certstest.New(t)
	pair := ca.Issue(t)
	k, err := stack.StartKafka(ctx, stack.KafkaOptions{FastStart: true, Secure: &stack.Secured{
		Cert: pair.Cert, Key: pair.Key, CA: ca.File, Users: map[string]string{user: password},
	}})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(k.LogTail())
		}
		require.NoError(t, k.Close(context.Background())) // the test's context has ended
	})
	return secured{k, ca}
}

func (s secured) config(mechanism string) config.Kafka {
	return config.Kafka{
		Brokers: s.SecureBrokers(), Partitions: 1, ReplicationFactor: 1, CAFile: s.ca.File,
		SASLMechanism: mechanism, SASLUsername: user, SASLPassword: password,
	}
}

// roundTrip writes a record by the publisher, so by a flight, and reads it as a member of a group, after the reader has
// made and judged the topic: every way that Tidemark connects to a broker.
func roundTrip(t *testing.T, k config.Kafka) {
	t.Helper()
	topic := topic.Spec{Name: "t-" + uuid.NewString(), Partitions: 1, ReplicationFactor: 1}
	reader := kafka.NewReader(k, "test")
	defer func() { require.NoError(t, reader.Close()) }()
	require.NoError(t, reader.Ensure(t.Context(), topic))
	await.Until(t, func() bool { return reader.Check(t.Context(), topic) == nil })

	publisher, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: k, ClientID: "test", Producer: "test/1", Log: quiet()})
	require.NoError(t, err)
	defer func() { require.NoError(t, publisher.Close()) }()
	await.Until(t, func() bool { return publisher.State() == nil })
	await.Until(t, func() bool {
		return publisher.PublishAll(topic.Name, kafka.NewMessage("key", []byte("value"), ""))[0].Err == nil
	})

	subscriber, err := kafka.NewSubscriber(kafka.SubscriberOptions{
		Kafka: k, ClientID: "test", Group: topic.Name, BatchSize: 10, Log: quiet(),
		SetUp: func(kafka.Session) error { return nil }, CleanUp: func() {},
	})
	require.NoError(t, err)
	batches, err := subscriber.Subscribe(t.Context(), topic.Name)
	require.NoError(t, err)
	var taken sync.WaitGroup
	taken.Go(func() {
		b := <-batches
		if b == nil || string(b.Records[0].Value) != "value" {
			t.Error("another record came", b)
			return
		}
		b.Done(b.Records[0].Offset+1, "")
	})
	taken.Wait()
	require.NoError(t, subscriber.Close())
}

func TestEveryClientSpeaksTLSAndSASL(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			roundTrip(t, s.config(mechanism))
		})
	}
	t.Run("certificate", func(t *testing.T) {
		t.Parallel()
		pair := s.ca.Issue(t)
		k := config.Kafka{Brokers: s.CertificateBrokers(), CAFile: s.ca.File, CertFile: pair.Cert, KeyFile: pair.Key}
		roundTrip(t, k)
		k.CertFile, k.KeyFile = "", ""
		_, err := kafka.NewClient(k, "test")
		require.ErrorContains(t, err, "KAFKA_TLS_CERT_FILE")
	})

	// What does not fit is refused in words that name the setting, by every client alike. The log has the file and the reason
	// beside them, and never the password.
	other := certstest.New(t)
	nonsense := filepath.Join(t.TempDir(), "nonsense.pem")
	require.NoError(t, os.WriteFile(nonsense, []byte("nonsense"), 0o600))
	expired := s.ca.IssueFor(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "localhost")
	const refused, file = "the brokers refuse KAFKA_SASL_USERNAME or its password", "a file of KAFKA_TLS_CA_FILE, KAFKA_TLS_CERT_FILE or KAFKA_TLS_KEY_FILE cannot be used"
	for name, tc := range map[string]struct {
		change func(*config.Kafka)
		cause  string
		logged []string
	}{
		"another authority":   {func(k *config.Kafka) { k.CAFile = other.File }, "not signed by an authority that KAFKA_TLS_CA_FILE names", nil},
		"no authority":        {func(k *config.Kafka) { k.CAFile, k.TLS = "", true }, "not signed by an authority that KAFKA_TLS_CA_FILE names", nil},
		"a missing file":      {func(k *config.Kafka) { k.CAFile = "/none/ca.pem" }, file, []string{"KAFKA_TLS_CA_FILE: there is no file /none/ca.pem"}},
		"a file of nonsense":  {func(k *config.Kafka) { k.CAFile = nonsense }, file, []string{"KAFKA_TLS_CA_FILE", nonsense, "no certificate"}},
		"an old certificate":  {func(k *config.Kafka) { k.CertFile, k.KeyFile = expired.Cert, expired.Key }, file, []string{"KAFKA_TLS_CERT_FILE", expired.Cert, "has expired"}},
		"another password":    {func(k *config.Kafka) { k.SASLPassword = "hunter2" }, refused, nil},
		"another user":        {func(k *config.Kafka) { k.SASLUsername = "nobody" }, refused, nil},
		"another mechanism":   {func(k *config.Kafka) { k.SASLMechanism = "PLAIN"; k.SASLPassword = "hunter2" }, refused, nil},
		"TLS to a plain port": {func(k *config.Kafka) { k.Brokers = s.Brokers() }, "the brokers closed the connection", nil},
		"plain to a TLS port": {func(k *config.Kafka) { k.CAFile = "" }, "want TLS (KAFKA_TLS)", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := s.config("SCRAM-SHA-512")
			tc.change(&k)
			_, plain := kafka.NewClient(k, "test")
			asker := logid.NewAsker(k, "test")
			_, asked := asker.Ask(t.Context(), "a")
			require.NoError(t, asker.Close())
			states := make(chan error, 1)
			publisher, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: k, ClientID: "test", Producer: "test/1", Log: quiet(), OnState: func(err error) {
				select {
				case states <- err:
				default:
				}
			}})
			require.NoError(t, err)
			said := <-states
			require.NoError(t, publisher.Close())
			for client, err := range map[string]error{"a plain client": plain, "the asker": asked, "the publisher": said} {
				cause, told := kafka.CauseOf(err)
				require.True(t, told, "%s: %v", client, err)
				require.Contains(t, cause.Found, tc.cause, "%s: %v", client, err)
				for _, w := range tc.logged {
					require.ErrorContains(t, err, w, client)
				}
				for _, secret := range []string{password, "hunter2"} {
					require.NotContains(t, fmt.Sprint(err), secret, client)
				}
			}
		})
	}
}

const (
	patience = story.Patience
	tick     = 20 * time.Millisecond
)

var early, late = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
