package certs

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/shared/filewatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func files(cert, key string) Files {
	return Files{CertName: "TLS_CERT_FILE", Cert: cert, KeyName: "TLS_KEY_FILE", Key: key}
}

// Each refusal names the variable, the file and the reason.
func TestPairsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	ca := certstest.New(t)
	now := time.Now()
	good, other := ca.Issue(t), ca.Issue(t)
	expired := ca.IssueFor(t, now.Add(-2*time.Hour), now.Add(-time.Hour), "localhost")
	early := ca.IssueFor(t, now.Add(time.Hour), now.Add(2*time.Hour), "localhost")
	nonsense := filepath.Join(t.TempDir(), "nonsense")
	require.NoError(t, os.WriteFile(nonsense, []byte("nonsense"), 0o600))
	_, err := files(good.Cert, good.Key).Load(now)
	require.NoError(t, err)
	for _, tc := range []struct {
		cert, key string
		words     []string
	}{
		{good.Cert, "", []string{"TLS_CERT_FILE is set and TLS_KEY_FILE is not"}},
		{"", good.Key, []string{"TLS_KEY_FILE is set and TLS_CERT_FILE is not"}},
		{"/none/cert.pem", "/none/key.pem", []string{"TLS_CERT_FILE: there is no file /none/cert.pem", "TLS_KEY_FILE: there is no file /none/key.pem"}},
		{nonsense, good.Key, []string{"TLS_CERT_FILE", nonsense, "no certificate in PEM form"}},
		{good.Key, good.Key, []string{"TLS_CERT_FILE", good.Key, "no certificate in PEM form"}},
		{good.Cert, nonsense, []string{"TLS_KEY_FILE", nonsense, "no private key in PEM form"}},
		{good.Cert, other.Key, []string{"TLS_KEY_FILE", other.Key, "is not the key of the certificate in " + good.Cert}},
		{expired.Cert, expired.Key, []string{"TLS_CERT_FILE", expired.Cert, "has expired on"}},
		{early.Cert, early.Key, []string{"TLS_CERT_FILE", early.Cert, "is yet to come"}},
		{filepath.Dir(nonsense), good.Key, []string{"TLS_CERT_FILE", filepath.Dir(nonsense)}},
	} {
		_, err := files(tc.cert, tc.key).Load(now)
		for _, w := range tc.words {
			require.ErrorContains(t, err, w)
		}
	}
	for path, words := range map[string]string{"/none/ca.pem": "there is no file /none/ca.pem", nonsense: "no certificate in PEM form"} {
		_, err := Authorities("CA", path)
		require.ErrorContains(t, err, "CA: ")
		require.ErrorContains(t, err, words)
	}
}

// handshake connects to a server that shows pair, by the words of a client that trusts ca.
func handshake(t *testing.T, p *Pair, ca string) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", p.Server())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, c) // until the client has seen enough
		_ = c.Close()
	}()
	pool, err := Authorities("CA", ca)
	require.NoError(t, err)
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), &tls.Config{RootCAs: pool})
	if err == nil {
		require.NoError(t, c.Close())
	}
	<-done
	require.NoError(t, l.Close())
	return err
}

func TestAPairIsServedAndFollowed(t *testing.T) {
	t.Parallel()
	first, second := certstest.New(t), certstest.New(t)
	pair := first.Issue(t)
	var said bytes.Buffer
	p, err := Open(files(pair.Cert, pair.Key), slog.New(slog.NewTextHandler(&said, nil)))
	require.NoError(t, err)
	require.NoError(t, handshake(t, p, first.File))
	wrong := Untrusted(handshake(t, p, second.File), "CA", second.File)
	require.ErrorContains(t, wrong, "not signed by any authority in "+second.File+" (CA)")

	renewed := second.Issue(t)
	now := time.Now()
	require.NoError(t, os.Rename(renewed.Cert, pair.Cert))
	p.reload(now)
	require.Empty(t, said.String(), "the key may follow")
	now = now.Add(filewatch.StillFor)
	p.reload(now)
	require.Contains(t, said.String(), "is not the key of the certificate", "half of a renewal")
	require.NoError(t, handshake(t, p, first.File), "the one before stays")
	said.Reset()
	p.reload(now)
	require.Empty(t, said.String(), "said once")
	require.NoError(t, os.Rename(renewed.Key, pair.Key))
	p.reload(now)
	require.NoError(t, handshake(t, p, first.File), "the new one is not still yet")
	p.reload(now.Add(filewatch.StillFor))
	require.Contains(t, said.String(), "was renewed")
	require.NoError(t, handshake(t, p, second.File))
}

func TestOtherErrorsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	plain := errors.New("refused")
	require.Equal(t, plain, Untrusted(plain, "CA", ""))
	require.NoError(t, Untrusted(nil, "CA", ""))
	ca := certstest.New(t)
	pair := ca.IssueFor(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "elsewhere.example")
	p, err := Open(files(pair.Cert, pair.Key), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.ErrorContains(t, Untrusted(handshake(t, p, ca.File), "CA", ca.File), "for another host name")
}
