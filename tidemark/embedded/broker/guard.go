package broker

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxRequest is Kafka's own default for the largest request (socket.request.max.bytes).
const maxRequest = 100 << 20

// guardedListener hands kfake only connections that speak Kafka: an unknown request makes kfake panic, and a browser
// that comes by would have it allocate the first four letters of "GET /" as a length.
type guardedListener struct{ net.Listener }

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: conn}, nil
}

// guardedConn checks the head of each request before it passes any byte of it on. Reads are made by one goroutine at a
// time, as kfake does.
type guardedConn struct {
	net.Conn
	head [8]byte // length, key, version
	held []byte  // the part of head that is still to be passed on
	left int     // bytes of the current request that are still to come
}

func (c *guardedConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(c.held) == 0 && c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if len(c.held) > 0 {
		n := copy(p, c.held)
		c.held = c.held[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// next reads and judges the head of the next request.
func (c *guardedConn) next() error {
	if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
		return err
	}
	length := int32(binary.BigEndian.Uint32(c.head[:]))
	key := int16(binary.BigEndian.Uint16(c.head[4:]))
	if length < 8 || length > maxRequest {
		return fmt.Errorf("request of %d bytes", length)
	}
	if kmsg.RequestForKey(key) == nil {
		return fmt.Errorf("request of unknown kind %d", key)
	}
	c.held = c.head[:]
	c.left = int(length) - 4
	return nil
}
