package stack

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports from which none is given to an outgoing connection on Linux (32768 and up) or macOS (49152 and up).
const firstPort, lastPort = 20000, 32000

var taken sync.Map // port → struct{}{}; so that one process never hands a port out twice

// FreePort returns a port of 127.0.0.1 on which nobody listens. Another process may take it before it is used; a
// start that fails on it is worth repeating with another one.
func FreePort(ctx context.Context) (int, error) {
	var refused error
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if _, twice := taken.LoadOrStore(port, struct{}{}); twice {
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address(port))
		if err != nil {
			refused = err
			continue
		}
		return port, l.Close()
	}
	return 0, errors.Join(errors.New("no free port on 127.0.0.1"), refused)
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// accepts tells whether somebody listens there.
func accepts(ctx context.Context, addr string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was sent
	return true
}
