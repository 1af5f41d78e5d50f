package kafka_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
)

// peer answers each connection by serve, and returns its address.
func peer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	return l.Addr().String()
}

func broker(t *testing.T, opts ...kfake.Opt) string {
	t.Helper()
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c.ListenAddrs()[0]
}

// Each way in which the brokers cannot be used has one wording, by whichever client it is met. It names the part that is at
// fault, and gives nothing away to whoever asks /ready without a key. What only a real Kafka says, of a wrong password say, is
// tested where one with TLS and SASL runs (integration/security).
func TestEachCauseIsSaidInOneWording(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	ca, other := certstest.New(t), certstest.New(t)
	serving := func(pair certstest.Pair) *tls.Config {
		certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
		require.NoError(t, err)
		return &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	asking := serving(ca.Issue(t))
	asking.ClientAuth, asking.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	pem, err := os.ReadFile(ca.File)
	require.NoError(t, err)
	require.True(t, asking.ClientCAs.AppendCertsFromPEM(pem))
	asking12 := asking.Clone() // says what it wants; of TLS 1.3 a client may only see that the connection is closed
	asking12.MaxVersion = tls.VersionTLS12

	plain, secret := broker(t), broker(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "tidemark", "right"))
	encrypted, certified := broker(t, kfake.TLS(serving(ca.Issue(t)))), broker(t, kfake.TLS(asking))
	certified12 := broker(t, kfake.TLS(asking12))
	elsewhere := broker(t, kfake.TLS(serving(ca.IssueFor(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "elsewhere.example"))))
	expired := broker(t, kfake.TLS(serving(ca.IssueFor(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "127.0.0.1"))))
	silent := peer(t, func(c net.Conn) { t.Cleanup(func() { _ = c.Close() }) })
	ends := peer(t, func(c net.Conn) { _ = c.Close() })
	stranger := peer(t, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); _ = c.Close() })
	user := func(broker, password string) config.Kafka {
		return config.Kafka{Brokers: []string{broker}, SASLMechanism: "PLAIN", SASLUsername: "tidemark", SASLPassword: password}
	}
	for name, tc := range map[string]struct {
		kafka   config.Kafka
		want    string // empty where all is well
		timeout time.Duration
	}{
		"refused":              {kafka: config.Kafka{Brokers: []string{freeport.Address(port)}}, want: "nothing listens at the addresses of KAFKA_BROKERS"},
		"silent":               {config.Kafka{Brokers: []string{silent}}, "the brokers do not answer in time", time.Second},
		"silent TLS":           {config.Kafka{Brokers: []string{silent}, TLS: true}, "the brokers do not answer in time", time.Second},
		"ends":                 {kafka: config.Kafka{Brokers: []string{ends}}, want: "the brokers closed the connection"},
		"another protocol":     {kafka: config.Kafka{Brokers: []string{stranger}}, want: "what answers there is no Kafka"},
		"unknown host":         {kafka: config.Kafka{Brokers: []string{"nowhere.invalid:9092"}}, want: "KAFKA_BROKERS"},
		"no SASL":              {kafka: config.Kafka{Brokers: []string{secret}}, want: "the brokers closed the connection"},
		"SASL":                 {kafka: user(secret, "right")},
		"not TLS":              {kafka: config.Kafka{Brokers: []string{stranger}, TLS: true}, want: "does not speak TLS"},
		"TLS to one that ends": {kafka: config.Kafka{Brokers: []string{ends}, TLS: true}, want: "the brokers closed the connection"},
		"plain":                {kafka: config.Kafka{Brokers: []string{plain}}},
		"plain to TLS":         {kafka: config.Kafka{Brokers: []string{encrypted}}, want: "the brokers closed the connection"},
		"TLS":                  {kafka: config.Kafka{Brokers: []string{encrypted}, CAFile: ca.File}},
		"authority":            {kafka: config.Kafka{Brokers: []string{encrypted}, CAFile: other.File}, want: "not signed by an authority that KAFKA_TLS_CA_FILE names"},
		"system":               {kafka: config.Kafka{Brokers: []string{encrypted}, TLS: true}, want: "not signed by an authority that KAFKA_TLS_CA_FILE names"},
		"host name":            {kafka: config.Kafka{Brokers: []string{elsewhere}, CAFile: ca.File}, want: "for another host name"},
		"expired":              {kafka: config.Kafka{Brokers: []string{expired}, CAFile: ca.File}, want: "is not valid now"},
		"no certificate":       {kafka: config.Kafka{Brokers: []string{certified}, CAFile: ca.File}, want: "KAFKA_TLS_CERT_FILE"},
		"no certificate 1.2":   {kafka: config.Kafka{Brokers: []string{certified12}, CAFile: ca.File}, want: "they want a certificate"},
		"a missing file":       {kafka: config.Kafka{Brokers: []string{encrypted}, CAFile: "/none/ca.pem"}, want: "cannot be used"},
	} {
		ask := map[string]func(ctx context.Context) error{
			"reader": func(ctx context.Context) error {
				r := kafka.NewReader(tc.kafka, "test")
				defer func() { _ = r.Close() }()
				_, err := r.ClusterID(ctx)
				return err
			},
			"asker": func(ctx context.Context) error {
				a := logid.NewAsker(tc.kafka, "test")
				defer func() { _ = a.Close() }()
				_, err := a.Ask(ctx, "a")
				return err
			},
			"publisher": func(context.Context) error {
				states := make(chan error, 100)
				p, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: tc.kafka, ClientID: "test", Producer: "test", Log: slog.New(slog.DiscardHandler), RetryFor: 2 * time.Second, OnState: func(err error) {
					select {
					case states <- err:
					default:
					}
				}})
				if err != nil {
					return err
				}
				defer func() { _ = p.Close() }()
				select {
				case err := <-states:
					return err
				case <-time.After(90 * time.Second):
					return errors.New("the publisher hangs")
				}
			},
		}
		for client, ask := range ask {
			t.Run(name+" "+client, func(t *testing.T) {
				t.Parallel()
				if tc.timeout == 0 {
					tc.timeout = time.Minute // a busy machine is no silence
				}
				ctx, cancel := context.WithTimeout(t.Context(), tc.timeout)
				defer cancel()
				err := ask(ctx)
				if tc.want == "" {
					require.NoError(t, err)
					return
				}
				cause, told := kafka.CauseOf(err)
				require.True(t, told, err)
				require.Contains(t, cause.Found, tc.want, err)
				require.NotEmpty(t, cause.Do)
				for _, internal := range []string{"hunter2", "tidemark", "127.0.0.1", "nowhere", "/none", ".pem", "dial", "tls:", "x509", "kafka:"} {
					require.NotContains(t, cause.Found, internal)
				}
			})
		}
	}
}
