package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/Shopify/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Cause is why the brokers could not do what was asked of them. As an error it is one whose words may be shown to everybody.
type Cause struct {
	Found string // in words for everybody: it names no user, no host, no address and no file
	Do    string // what an operator does about it
}

func (c Cause) Error() string { return c.Found }

// CauseOf says why err happened, and whether it can be told. It is the one table of these words, for the clients of Sarama
// and of franz-go alike: /ready and doctor show them, and the log has err beside them.
func CauseOf(err error) (cause Cause, told bool) {
	if errors.As(err, &cause) {
		return cause, true
	}
	for _, row := range causes {
		if err != nil && row.is(err) {
			return row.Cause, true
		}
	}
	return Cause{"Kafka does not do as it should; the service's log says more", "look into the log of the service and of the brokers"}, false
}

// explained puts the cause before the text of an error, for logs.
func explained(err error) error {
	if cause, told := CauseOf(err); told && err != nil {
		return fmt.Errorf("%s: %w", cause.Found, err)
	}
	return err
}

// causes are looked through in this order. An error holds one for each broker that was tried; the first row that fits any of
// them counts. So what an operator must mend stands before what passes by itself.
var causes = []struct {
	is func(error) bool
	Cause
}{
	{func(err error) bool { // Sarama joins the errors of its brokers as text in places
		return is(sarama.ErrSASLAuthenticationFailed, kerr.SaslAuthenticationFailed)(err) || has(err, "SASL Authentication failed")
	}, Cause{"the brokers refuse KAFKA_SASL_USERNAME or its password", "correct them, or give the user credentials for the mechanism that KAFKA_SASL_MECHANISM names"}},
	{is(sarama.ErrUnsupportedSASLMechanism, sarama.ErrIllegalSASLState, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState),
		Cause{"the brokers do not take the mechanism of KAFKA_SASL_MECHANISM, or no SASL at this address", "choose one that the listener of KAFKA_BROKERS has, or unset the three variables of SASL"}},
	{is(sarama.ErrTopicAuthorizationFailed, sarama.ErrGroupAuthorizationFailed, sarama.ErrClusterAuthorizationFailed, kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed),
		Cause{"the brokers do not let this user do what the service must", "give it the right by kafka-acls.sh; the service's log names what was refused"}},
	{func(err error) bool { return has(err, "remote error: tls:") },
		Cause{"the brokers refuse the handshake of TLS: most often they want a certificate, and take none or not the one of KAFKA_TLS_CERT_FILE", "name one that they trust in KAFKA_TLS_CERT_FILE and KAFKA_TLS_KEY_FILE"}},
	{as[x509.HostnameError], Cause{"the certificate of the brokers is for another host name", "name the brokers in KAFKA_BROKERS as their certificate does, or have it issued anew"}},
	{func(err error) bool {
		var invalid x509.CertificateInvalidError
		return errors.As(err, &invalid) && invalid.Reason == x509.Expired
	}, Cause{"the certificate of the brokers is not valid now", "renew it, or set the clock of this machine"}},
	{func(err error) bool {
		return as[x509.UnknownAuthorityError](err) || as[x509.CertificateInvalidError](err) || as[*tls.CertificateVerificationError](err)
	}, Cause{"the certificate of the brokers is not signed by an authority that KAFKA_TLS_CA_FILE names", "name the authority of the brokers there; without the variable it is one of the system's"}},
	{func(err error) bool {
		return as[tls.RecordHeaderError](err) || has(err, "does not look like a TLS handshake")
	}, Cause{"what answers at KAFKA_BROKERS does not speak TLS", "name the TLS port of the brokers, or unset KAFKA_TLS and its files"}},
	{func(err error) bool { var e *net.DNSError; return errors.As(err, &e) && e.IsNotFound },
		Cause{"a host that KAFKA_BROKERS names is unknown", "correct it, or the resolver of this machine"}},
	{as[*net.DNSError], Cause{"the hosts of KAFKA_BROKERS cannot be looked up: the resolver does not answer", "mend the resolver of this machine"}},
	{is(syscall.ECONNREFUSED), Cause{"nothing listens at the addresses of KAFKA_BROKERS", startThem}},
	{is(syscall.EHOSTUNREACH, syscall.ENETUNREACH), Cause{"there is no way to the hosts of KAFKA_BROKERS", "mend the network, or correct KAFKA_BROKERS"}},
	{is(ErrNoTopic, kerr.UnknownTopicOrPartition), Cause{"a topic is not there", "tidemark doctor names it"}},
	{is(sarama.ErrLeaderNotAvailable, sarama.ErrReplicaNotAvailable, sarama.ErrNotLeaderForPartition, sarama.ErrNotEnoughReplicas, sarama.ErrBrokerNotAvailable, sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrOffsetsLoadInProgress, kerr.LeaderNotAvailable),
		Cause{"a partition has no leader, or too few replicas: brokers are down or have just started", "wait; start the brokers that are down"}},
	{timedOut, Cause{"the brokers do not answer in time", "look whether they are overloaded, or whether a firewall drops the packets"}},
	{func(err error) bool {
		return as[sarama.PacketDecodingError](err) || has(err, "invalid large response size") || is(io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed)(err) || strings.HasSuffix(err.Error(), "EOF") || as[*net.OpError](err)
	}, Cause{"the brokers closed the connection: they are restarting, or want TLS (KAFKA_TLS), a certificate (KAFKA_TLS_CERT_FILE) or SASL (KAFKA_SASL_MECHANISM) otherwise than it is set, or what answers there is no Kafka", "set TLS and SASL as the listener of KAFKA_BROKERS has them"}},
	{is(sarama.ErrOutOfBrokers), Cause{"no broker of KAFKA_BROKERS answers", startThem}},
}

const startThem = `start Kafka, or set KAFKA_BROKERS to the brokers' addresses as this machine reaches them (eval "$(tidemark env)" names those of a running tidemark up)`

func is(targets ...error) func(error) bool {
	return func(err error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
}

func as[E error](err error) bool {
	var target E
	return errors.As(err, &target)
}

func has(err error, text string) bool { return strings.Contains(err.Error(), text) }

func timedOut(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.Timeout()
}
