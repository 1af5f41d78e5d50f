package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/Shopify/sarama"
	"github.com/xdg-go/scram"

	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
)

// TLS returns how connections to the brokers are encrypted as k says; nil where they are not. Files are read anew by each call
// and the certificate for every connection, so that renewed ones are taken up without a restart.
func TLS(k config.Kafka) (*tls.Config, error) {
	if !k.SpeaksTLS() {
		return nil, nil //nolint:nilnil // as crypto/tls has it, nil is no TLS
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	unusable := Cause{"a file of KAFKA_TLS_CA_FILE, KAFKA_TLS_CERT_FILE or KAFKA_TLS_KEY_FILE cannot be used", "the service's log names it; --check says the same"}
	if k.CAFile != "" {
		pool, err := certs.Authorities("KAFKA_TLS_CA_FILE", k.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", unusable, err)
		}
		c.RootCAs = pool
	}
	if files := k.Certificate(); files.Set() {
		if _, err := files.Load(time.Now()); err != nil {
			return nil, fmt.Errorf("%w: %w", unusable, err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return files.Load(time.Now()) }
	}
	return c, nil
}

// secure sets TLS and SASL as k says.
func secure(c *sarama.Config, k config.Kafka) error {
	encrypted, err := TLS(k)
	if err != nil {
		return err
	}
	c.Net.TLS.Enable, c.Net.TLS.Config = encrypted != nil, encrypted
	if encrypted != nil {
		c.Net.Proxy.Enable = true // it is how Sarama takes a dialer
		c.Net.Proxy.Dialer = handshakes{net.Dialer{Timeout: c.Net.DialTimeout}, c.Net.ReadTimeout}
	}
	if k.SASLMechanism == "" {
		return nil
	}
	c.Net.SASL.Enable = true
	c.Net.SASL.Handshake = true
	c.Net.SASL.Version = sarama.SASLHandshakeV1
	c.Net.SASL.Mechanism = sarama.SASLMechanism(k.SASLMechanism)
	c.Net.SASL.User, c.Net.SASL.Password = k.SASLUsername, k.SASLPassword
	switch k.SASLMechanism {
	case sarama.SASLTypePlaintext:
	case sarama.SASLTypeSCRAMSHA256:
		c.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: scram.SHA256} }
	case sarama.SASLTypeSCRAMSHA512:
		c.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: scram.SHA512} }
	default:
		return fmt.Errorf("KAFKA_SASL_MECHANISM=%q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", k.SASLMechanism)
	}
	return nil
}

// handshakes bounds the handshake of TLS: Sarama sets no deadline before it, and would wait for ever for a peer that is silent.
// Each read after it has a deadline of its own.
type handshakes struct {
	net.Dialer
	limit time.Duration
}

func (d handshakes) Dial(network, address string) (net.Conn, error) {
	c, err := d.Dialer.Dial(network, address) //nolint:noctx // as Sarama's interface has it; the dialer has a timeout
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(d.limit)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// scramClient is one conversation of RFC 5802, as Sarama wants it. The package under it also checks that the
// broker knows the password.
type scramClient struct {
	hash         scram.HashGeneratorFcn
	conversation *scram.ClientConversation
}

func (s *scramClient) Begin(user, password, authorization string) error {
	client, err := s.hash.NewClient(user, password, authorization)
	if err != nil {
		return fmt.Errorf("KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD cannot be used for SCRAM: %w", err)
	}
	s.conversation = client.NewConversation()
	return nil
}

func (s *scramClient) Step(challenge string) (string, error) { return s.conversation.Step(challenge) }
func (s *scramClient) Done() bool                            { return s.conversation.Done() }
