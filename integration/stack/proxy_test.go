package stack_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/freeport"
)

// echo is a server that answers each line with the same line.
func echo(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func proxied(t *testing.T, upstream string) *stack.Proxy {
	t.Helper()
	p, err := stack.StartProxy(t.Context(), upstream)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

type peer struct {
	net.Conn
	lines *bufio.Reader
}

func dial(t *testing.T, addr string) *peer {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &peer{conn, bufio.NewReader(conn)}
}

// ask sends a line and returns what comes back within that time.
func (c *peer) ask(t *testing.T, line string, within time.Duration) (string, error) {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	return c.hear(t, within)
}

func (c *peer) hear(t *testing.T, within time.Duration) (string, error) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(within)))
	answer, err := c.lines.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// requireReset expects a new connection to be reset: while it is made, or just after.
func requireReset(t *testing.T, addr string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err == nil {
		defer func() { _ = conn.Close() }()
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(soon)))
		_, err = conn.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

const (
	soon  = 10 * time.Second // for what must happen
	while = 150 * time.Millisecond
)

func TestProxyPassesBytesOn(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	c := dial(t, p.Address())
	answer, err := c.ask(t, "hello", soon)
	require.NoError(t, err)
	require.Equal(t, "hello", answer)

	// A half-closed stream still brings its answer, and then its end.
	_, err = io.WriteString(c, "last\n")
	require.NoError(t, err)
	require.NoError(t, c.Conn.(*net.TCPConn).CloseWrite())
	answer, err = c.hear(t, soon)
	require.NoError(t, err)
	require.Equal(t, "last", answer)
	_, err = c.hear(t, soon)
	require.ErrorIs(t, err, io.EOF)
	await.Until(t, func() bool { return p.Connections() == 0 })
}

func TestCutProxyResetsAndRefusesUntilRestored(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	c := dial(t, p.Address())
	_, err := c.ask(t, "hello", soon)
	require.NoError(t, err)

	p.Cut()
	_, err = c.hear(t, soon)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Zero(t, p.Connections())
	requireReset(t, p.Address())

	p.Pass()
	answer, err := dial(t, p.Address()).ask(t, "again", soon)
	require.NoError(t, err)
	require.Equal(t, "again", answer)
}

func TestResetProxyTakesNewConnections(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	c := dial(t, p.Address())
	_, err := c.ask(t, "hello", soon)
	require.NoError(t, err)
	p.Reset()
	_, err = c.hear(t, soon)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	answer, err := dial(t, p.Address()).ask(t, "again", soon)
	require.NoError(t, err)
	require.Equal(t, "again", answer)
}

func TestHangingProxyHoldsEverythingBackAndLosesNothing(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	c := dial(t, p.Address())
	_, err := c.ask(t, "hello", soon)
	require.NoError(t, err)

	p.Hang()
	late := dial(t, p.Address()) // is taken, and left waiting
	for _, conn := range []*peer{c, late} {
		_, err = conn.ask(t, "silence", while)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	p.Pass()
	for _, conn := range []*peer{c, late} {
		answer, err := conn.hear(t, soon)
		require.NoError(t, err)
		require.Equal(t, "silence", answer)
	}
}

func TestProxyHoldsOnlyRepliesBack(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	p := proxied(t, l.Addr().String())
	p.HangReplies()
	c := dial(t, p.Address())
	accepted, err := l.Accept()
	require.NoError(t, err)
	server := &peer{accepted, bufio.NewReader(accepted)}
	t.Cleanup(func() { _ = server.Close() })

	_, err = io.WriteString(c, "request\n")
	require.NoError(t, err)
	heard, err := server.hear(t, soon)
	require.NoError(t, err)
	require.Equal(t, "request", heard)
	_, err = io.WriteString(server, "reply\n")
	require.NoError(t, err)
	_, err = c.hear(t, while)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	p.Pass()
	heard, err = c.hear(t, soon)
	require.NoError(t, err)
	require.Equal(t, "reply", heard)
}

func TestHungConnectionIsGoneAfterACut(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	p.Hang()
	c := dial(t, p.Address())
	_, err := c.ask(t, "lost", while)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	p.Cut()
	_, err = c.hear(t, soon)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestSlowProxyDelaysAndThrottles(t *testing.T) {
	t.Parallel()
	p := proxied(t, echo(t))
	c := dial(t, p.Address())
	_, err := c.ask(t, "hello", soon)
	require.NoError(t, err)

	p.Slow(60*time.Millisecond, 0)
	began := time.Now()
	_, err = c.ask(t, "there and back", soon)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 120*time.Millisecond)

	p.Slow(0, 50_000) // 10,000 bytes take a fifth of a second each way; the last chunk's share is not waited for
	began = time.Now()
	for range 10 {
		_, err = c.ask(t, strings.Repeat("x", 999), soon)
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, time.Since(began), 180*time.Millisecond)

	p.Slow(10*soon, 0)
	p.Pass()
	_, err = c.ask(t, "quick", soon)
	require.NoError(t, err, "nothing of it is left")
}

func TestProxyResetsClientsOfAServerThatIsDown(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	p := proxied(t, (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
	requireReset(t, p.Address())
}

func TestClosedProxyLeavesNothing(t *testing.T) {
	t.Parallel()
	p, err := stack.StartProxy(context.Background(), echo(t))
	require.NoError(t, err)
	c := dial(t, p.Address())
	_, err = c.ask(t, "hello", soon)
	require.NoError(t, err)
	p.Hang()
	require.NoError(t, p.Close())
	_, err = c.hear(t, soon)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.NoError(t, p.Close())
}
