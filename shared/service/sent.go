package service

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"
)

// TraceSent returns a context for one request, and reports whether any of the request may have been sent: it had a
// connection, and over TLS one whose other end was trusted. Where it had none, the request was surely not carried out.
func TraceSent(ctx context.Context) (context.Context, func() bool) {
	var sent atomic.Bool
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}), sent.Load
}
