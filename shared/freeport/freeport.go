// Package freeport finds TCP ports of 127.0.0.1 for tests: for a server that is started on a port known beforehand, and
// for an address at which nobody answers.
//
// A port is handed out once on this machine, for as long as the process that asked for it lives, and it can be listened
// on at once. Asking the kernel for a port and closing the listener promises neither: the kernel gives the same port to
// an outgoing connection, and a child that was forked in between holds the listener open until it runs its own program.
package freeport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
)

// Ports from which none is given to an outgoing connection on Linux (32768 and up) or macOS (49152 and up).
const firstPort, lastPort = 20000, 32000

// reserved are UDP sockets on the ports that this process has handed out, open for as long as it lives: nobody speaks UDP
// here, so they disturb nothing, and they keep every other process that uses this package from handing out the same.
var reserved struct {
	sync.Mutex
	sockets []net.PacketConn
}

// Find returns a port on which nobody listens and which Find gives to nobody else, in this process or another, while
// this one lives.
func Find(ctx context.Context) (int, error) {
	var refused error
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		socket, err := new(net.ListenConfig).ListenPacket(ctx, "udp", Address(port))
		if err != nil {
			refused = err
			continue
		}
		if err := unused(ctx, port); err != nil {
			refused = errors.Join(err, socket.Close())
			continue
		}
		reserved.Lock()
		reserved.sockets = append(reserved.sockets, socket)
		reserved.Unlock()
		return port, nil
	}
	return 0, errors.Join(errors.New("no free port on 127.0.0.1"), refused)
}

// Address is the host:port of a port of 127.0.0.1.
func Address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// unused asks by a connection and not by a listener of its own, which a child forked meanwhile would hold open.
func unused(ctx context.Context, port int) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", Address(port))
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("somebody listens on %s", Address(port)), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	default:
		return err
	}
}
