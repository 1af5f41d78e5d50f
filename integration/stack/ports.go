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

// held are UDP sockets on the ports that this process has handed out, open for as long as it lives: nobody speaks UDP
// here, so they disturb nothing, and they keep every other process that uses FreePort from handing out the same.
var held struct {
	sync.Mutex
	sockets []net.PacketConn
}

// FreePort returns a TCP port of 127.0.0.1 on which nobody listens and which FreePort gives to nobody else, in this
// process or another, while this one lives.
func FreePort(ctx context.Context) (int, error) {
	var refused error
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		socket, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address(port))
		if err != nil {
			refused = err
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address(port))
		if err != nil {
			refused = errors.Join(err, socket.Close())
			continue
		}
		held.Lock()
		held.sockets = append(held.sockets, socket)
		held.Unlock()
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
