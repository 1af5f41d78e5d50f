package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/freeport"
)

// Proxy is a TCP proxy to one server, and the hand that disturbs what passes through it. It passes everything on
// until told otherwise, and each of Pass, Cut, Hang, HangReplies and Slow replaces the one before, for the connections
// that are there and for those to come. It does nothing by chance and nothing by itself.
type Proxy struct {
	listener net.Listener
	upstream string
	closed   chan struct{}
	close    sync.Once
	busy     sync.WaitGroup

	mu      sync.Mutex
	rule    rule
	changed chan struct{} // closed when rule is replaced
	links   map[*link]struct{}
}

// rule is what happens to bytes on their way.
type rule struct {
	cut            bool
	holds          [2]bool // by direction
	latency        time.Duration
	bytesPerSecond int
}

const dialLimit = 5 * time.Second

type direction int

const (
	requests direction = iota // from client to server
	replies
)

// link is one client's connection with its other half.
type link struct {
	client, server *net.TCPConn // server is nil until it is dialled; guarded by Proxy.mu
	over           chan struct{}
	end            sync.Once
}

// StartProxy listens on a free port of 127.0.0.1 and forwards to upstream, a host:port, which need not be up yet.
// The caller closes it. The context bounds the start only.
func StartProxy(ctx context.Context, upstream string) (*Proxy, error) {
	port, err := freeport.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", upstream, err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", freeport.Address(port))
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", upstream, err)
	}
	p := &Proxy{
		listener: listener, upstream: upstream, closed: make(chan struct{}),
		changed: make(chan struct{}), links: map[*link]struct{}{},
	}
	p.busy.Go(p.accept)
	return p, nil
}

// Address returns the host:port that clients dial instead of the server's.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Pass forwards everything again, what was held back included.
func (p *Proxy) Pass() { p.follow(rule{}) }

// Cut resets every connection and, until another rule is given, each new one at once.
func (p *Proxy) Cut() {
	p.follow(rule{cut: true})
	p.Reset()
}

// Hang holds every byte back in both directions, and keeps connections open and takes new ones: the other side is
// there and says nothing, as when a machine is frozen or a cable is out.
func (p *Proxy) Hang() { p.follow(rule{holds: [2]bool{requests: true, replies: true}}) }

// HangReplies lets requests through and holds the replies back: what was asked is done, and nobody hears of it.
func (p *Proxy) HangReplies() { p.follow(rule{holds: [2]bool{replies: true}}) }

// Slow delays every byte by latency, in each direction, and lets no more than bytesPerSecond pass in each direction of
// each connection; zero is no limit.
func (p *Proxy) Slow(latency time.Duration, bytesPerSecond int) {
	p.follow(rule{latency: latency, bytesPerSecond: bytesPerSecond})
}

// Reset ends the connections of this moment with a RST on both sides and changes nothing for those to come. What was
// held back is lost.
func (p *Proxy) Reset() {
	p.mu.Lock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		p.reset(l)
	}
}

// Connections counts the clients connected now.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Close resets what is left and gives the port back.
func (p *Proxy) Close() error {
	p.close.Do(func() { close(p.closed) })
	err := p.listener.Close()
	p.Reset()
	p.busy.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Proxy) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

func (p *Proxy) follow(r rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = r
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) current() (rule, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rule, p.changed
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		l := &link{client: conn.(*net.TCPConn), over: make(chan struct{})}
		p.mu.Lock()
		refused := p.rule.cut || p.isClosed()
		if !refused {
			p.links[l] = struct{}{}
			p.busy.Go(func() { p.serve(l) })
		}
		p.mu.Unlock()
		if refused {
			abort(l.client)
		}
	}
}

func (p *Proxy) serve(l *link) {
	peacefully := false
	defer func() { p.finish(l, peacefully) }()
	if !p.pause(l, requests, time.Time{}) {
		return
	}
	conn, err := net.DialTimeout("tcp", p.upstream, dialLimit) //nolint:noctx // loopback answers at once or never
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server = conn.(*net.TCPConn)
	_, alive := p.links[l]
	p.mu.Unlock()
	if !alive { // reset while it dialled
		abort(l.server)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.forward(l, requests, l.server, l.client) })
	both.Go(func() { p.forward(l, replies, l.client, l.server) })
	both.Wait()
	peacefully = true // or reset already
}

// chunk is what one read brought, and when.
type chunk struct {
	bytes []byte
	at    time.Time
}

// forward carries one direction. Reading runs ahead of writing by a bounded number of chunks, so that latency delays
// bytes without thinning them out.
func (p *Proxy) forward(l *link, d direction, dst, src *net.TCPConn) {
	const ahead = 64
	chunks := make(chan chunk, ahead)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 32<<10)
			n, err := src.Read(buffer)
			if n > 0 {
				select {
				case chunks <- chunk{buffer[:n], time.Now()}:
				case <-l.over:
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && p.pause(l, d, time.Now()) { // a RST is held back like bytes
					p.reset(l)
				}
				return
			}
		}
	})
	defer reader.Wait()
	for c := range chunks {
		if !p.pause(l, d, c.at) {
			return
		}
		if _, err := dst.Write(c.bytes); err != nil {
			p.reset(l)
			return
		}
		r, _ := p.current()
		if r.bytesPerSecond > 0 && !sleep(l, time.Duration(len(c.bytes))*time.Second/time.Duration(r.bytesPerSecond)) {
			return
		}
	}
	if p.pause(l, d, time.Now()) { // the end of a stream is held back like its bytes
		_ = dst.CloseWrite() // the other side may be gone already
	}
}

// pause waits until the rule of the moment lets bytes read at that time pass. It returns false when the link is over.
func (p *Proxy) pause(l *link, d direction, at time.Time) bool {
	for {
		r, changed := p.current()
		var due <-chan time.Time
		switch wait := time.Until(at.Add(r.latency)); {
		case r.holds[d]:
		case at.IsZero() || wait <= 0:
			return true
		default:
			due = time.After(wait)
		}
		select {
		case <-due:
			return true
		case <-changed:
		case <-l.over:
			return false
		}
	}
}

func sleep(l *link, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-l.over:
		return false
	}
}

func (p *Proxy) reset(l *link) { p.finish(l, false) }

// finish closes both halves, with a RST unless both had said goodbye.
func (p *Proxy) finish(l *link, peacefully bool) {
	hangUp := abort
	if peacefully {
		hangUp = func(c *net.TCPConn) { _ = c.Close() } // nothing is left to fail
	}
	l.end.Do(func() {
		p.mu.Lock()
		delete(p.links, l)
		server := l.server
		p.mu.Unlock()
		close(l.over)
		hangUp(l.client)
		if server != nil {
			hangUp(server)
		}
	})
}

// abort closes a connection with a RST instead of a FIN, without waiting for what is unsent.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails on a connection that is gone, which is what is wanted
	_ = c.Close()
}
