package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
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
	if k.CAFile != "" {
		pool, err := certs.Authorities("KAFKA_TLS_CA_FILE", k.CAFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = pool
	}
	if files := k.Certificate(); files.Set() {
		if _, err := files.Load(time.Now()); err != nil {
			return nil, err
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

// explained says which setting a failed connection points at, where it points at one.
func explained(err error, k config.Kafka) error {
	if err == nil {
		return nil
	}
	text := err.Error() // Sarama joins the errors of its brokers as text in places
	switch {
	case errors.Is(err, sarama.ErrSASLAuthenticationFailed) || strings.Contains(text, "SASL Authentication failed"):
		return fmt.Errorf("the brokers refuse KAFKA_SASL_USERNAME=%s with its password (%s): %w", k.SASLUsername, k.SASLMechanism, err)
	case errors.Is(err, sarama.ErrUnsupportedSASLMechanism) || errors.Is(err, sarama.ErrIllegalSASLState):
		return fmt.Errorf("the brokers do not take KAFKA_SASL_MECHANISM=%s: %w", k.SASLMechanism, err)
	case strings.Contains(text, "remote error: tls:") && strings.Contains(text, "certificate"):
		shown := "none is shown: name one in KAFKA_TLS_CERT_FILE and KAFKA_TLS_KEY_FILE"
		if k.CertFile != "" {
			shown = "they do not take that of KAFKA_TLS_CERT_FILE=" + k.CertFile
		}
		return fmt.Errorf("the brokers want a certificate and %s: %w", shown, err)
	case k.SpeaksTLS() && (strings.HasSuffix(text, "EOF") || strings.Contains(text, "does not look like a TLS handshake")):
		return fmt.Errorf("the connection was closed at once, as brokers do that do not speak TLS at KAFKA_BROKERS=%s: name their TLS port, or unset KAFKA_TLS and its files: %w", strings.Join(k.Brokers, ","), err)
	case k.SpeaksTLS():
		return certs.Untrusted(err, "KAFKA_TLS_CA_FILE", k.CAFile)
	case strings.HasSuffix(text, "EOF"):
		return fmt.Errorf("the connection was closed at once, as brokers do that want TLS (KAFKA_TLS) or SASL (KAFKA_SASL_MECHANISM) at KAFKA_BROKERS=%s: %w", strings.Join(k.Brokers, ","), err)
	}
	return err
}
