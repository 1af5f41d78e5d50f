package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/command-service/internal/door"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/event"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/ticket"
)

// A stream has two goroutines and a bounded queue of chunks between them. One reads lines, decodes them and gives each
// its ticket; the other, the handler's, takes as many chunks as are there, hands their commands to the door together,
// and writes the answers while the first reads on. So the size of a group follows the load, as at the door: a client
// that sends a line and waits for its answer has it at once, and one that sends a million shares flights of some
// thousands.
//
// Nothing grows with the stream. When the log is slow the queue fills and the body is not read, when the client does
// not read its answers they are not written and then the same; TCP tells the client.
//
// It ends at the body's end, when no line comes or no answer is taken for limits.idle, when the client goes, or when
// the service stops. Whatever was handed to the door by then has its answer written, if anybody is there to read it;
// then a last answer without a line number says why, unless it was the body's end.

// streamLimits bound a stream.
type streamLimits struct {
	line  int           // bytes of one line, without its end
	chunk int           // lines decoded before they are passed on
	bytes int           // of the records of one chunk, about
	ahead int           // chunks between reading and writing, and those of one flight
	idle  time.Duration // without a line, or with an answer that nobody takes
}

var defaultLimits = streamLimits{line: limits.Line, chunk: 256, bytes: 64 << 10, ahead: 16, idle: time.Minute}

var (
	errIdle       = errors.New("no line came for too long")
	errBodyBroken = errors.New("the body could not be read to its end")
	errStopping   = errors.New("the service is being stopped")
)

// entry is one line of the stream.
type entry struct {
	number  int64
	attempt attempt
	command door.Command
	err     error // the line is refused here
}

// stream is one request in progress.
type stream struct {
	server *Server
	gin    *gin.Context
	http   *http.ResponseController
	caller string
	key    string // the Idempotency-Key of the whole stream, or ""
	first  int64  // the number of its first line

	chunks  chan []entry // closed at the end of reading
	readErr error        // why reading ended, before the body's end; set before chunks is closed
	gone    chan struct{}
	out     []byte
	started bool // something was written
}

// StampStream accepts a command for each line of the body, and answers each with a line.
func (s *Server) StampStream(c *gin.Context, p api.StampStreamParams) {
	if err := s.doors.Timestamps.State(); err != nil {
		s.fail(c, err, attempt{})
		return
	}
	key, caller := keyOf(p.IdempotencyKey), callerOf(c.Request.Context())
	if p.IdempotencyKey != nil {
		if _, err := door.PlaceTicket(key, door.Binding{Caller: caller}, 0, s.now()); err != nil { // it is the same for every line
			s.fail(c, err, attempt{})
			return
		}
	}
	first := int64(1)
	if p.FromLine != nil {
		first = *p.FromLine
	}
	st := &stream{
		server: s, gin: c, http: http.NewResponseController(c.Writer), caller: caller, key: key, first: first,
		chunks: make(chan []entry, s.limits.ahead), gone: make(chan struct{}),
	}
	if err := st.http.EnableFullDuplex(); err != nil {
		s.fail(c, fmt.Errorf("answer while reading: %w", err), attempt{})
		return
	}
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() { // a read under way must not outlive the service, or a client that takes no answers
		defer close(watched)
		select {
		case <-s.stopping:
		case <-st.gone:
		case <-done:
			return
		}
		_ = st.http.SetReadDeadline(time.Unix(1, 0)) // a connection that is gone is no better to read from
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		r := &lineReader{stream: st, body: c.Request.Body, lines: first - 1, seen: first - 1, moved: time.Now()}
		r.run()
	}()
	st.answer(c.Request.Context())
	<-read // the body must not be read once the handler has returned
	close(done)
	<-watched
}

// answer hands over and writes until reading has ended.
func (st *stream) answer(ctx context.Context) {
	// A client that has gone, or sends no more, still has commands in hand; the deadline of the door bounds them.
	ctx = context.WithoutCancel(ctx)
	bounds := st.server.limits
	group := make([]entry, 0, bounds.chunk*bounds.ahead)
	for chunk := range st.chunks {
		group = append(group[:0], chunk...)
		for more := true; more && len(group)+bounds.chunk <= cap(group); {
			select {
			case chunk, open := <-st.chunks:
				group, more = append(group, chunk...), open
			default:
				more = false
			}
		}
		if err := st.send(ctx, group); err != nil {
			close(st.gone)
			for range st.chunks { // reading ends; what it has decoded is not handed over
			}
			return
		}
	}
	_ = st.http.SetWriteDeadline(time.Now().Add(bounds.idle)) // that of the request may be over
	if st.readErr == nil {
		if !st.started {
			st.start()
			st.gin.Writer.WriteHeaderNow()
		}
		return
	}
	if !st.started {
		st.server.fail(st.gin, st.readErr, attempt{})
		return
	}
	st.out = append(st.out[:0], `{"error":`...)
	st.out = append(st.appendProblem(st.out, st.readErr, attempt{}), "}\n"...)
	_ = st.write() // nobody may be there
}

// send hands a group to the door and writes its answers. The error is that of writing.
func (st *stream) send(ctx context.Context, group []entry) error {
	commands := make([]door.Command, 0, len(group))
	for i := range group {
		if group[i].err == nil {
			commands = append(commands, group[i].command)
		}
	}
	outcomes := st.server.doors.Timestamps.AcceptPatiently(ctx, commands)
	st.out = st.out[:0]
	for i := range group {
		e := &group[i]
		var at position.Position
		if e.err == nil {
			at, e.err = outcomes[0].Position, outcomes[0].Err
			outcomes = outcomes[1:]
		}
		st.out = strconv.AppendInt(append(st.out, `{"line":`...), e.number, 10)
		if e.err == nil {
			st.out = append(append(st.out, `,"id":"`...), e.attempt.ticket...)
			st.out = append(append(st.out, `","position":"`...), at.Topic...)
			st.out = strconv.AppendInt(append(st.out, '/'), int64(at.Partition), 10)
			st.out = strconv.AppendInt(append(st.out, '@'), at.Offset, 10)
			st.out = append(st.out, "\"}\n"...)
		} else {
			st.out = append(st.out, `,"error":`...)
			st.out = append(st.appendProblem(st.out, e.err, e.attempt), "}\n"...)
		}
		if len(st.out) > 256<<10 { // refusals are long
			if err := st.write(); err != nil {
				return err
			}
		}
	}
	return st.write()
}

func (st *stream) appendProblem(dst []byte, err error, a attempt) []byte {
	ctx := st.gin.Request.Context()
	p := st.server.failures.answer(ctx, err, a).Problem
	if id := telemetry.CorrelationID(ctx); id != "" {
		p.Instance = "urn:correlation:" + id
	}
	text, failed := json.Marshal(p)
	if failed != nil { // strings always marshal
		text = []byte("{}")
	}
	return append(dst, text...)
}

func (st *stream) start() {
	st.started = true
	h := st.gin.Writer.Header()
	h.Set("Content-Type", sharedhttp.StreamType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would gather the answers
	window := limits.Stream
	if r := st.gin.Request.Header; r.Get("X-Forwarded-For")+r.Get("Forwarded")+r.Get("Via") != "" {
		window = limits.ProxiedStream
	}
	h.Set("Tidemark-Stream-Window", strconv.Itoa(window))
	st.gin.Status(http.StatusOK)
}

func (st *stream) write() error {
	if len(st.out) == 0 {
		return nil
	}
	if !st.started {
		st.start()
	}
	if err := st.http.SetWriteDeadline(time.Now().Add(st.server.limits.idle)); err != nil {
		return err
	}
	_, err := st.gin.Writer.Write(st.out)
	st.out = st.out[:0]
	if err != nil {
		return err
	}
	return st.http.Flush()
}

// lineReader decodes lines and passes them on in chunks.
type lineReader struct {
	*stream
	body io.ReadCloser

	lines  int64 // the number of the last line that was read
	seen   int64 // lines at the last look at the clock
	moved  time.Time
	chunk  []entry
	values []byte // the records of chunk, one behind the other
	ends   []int  // of the records in values
}

func (r *lineReader) run() {
	defer close(r.chunks)
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		raw, err := in.ReadSlice('\n')
		tooLong := len(raw) > r.server.limits.line+1
		for errors.Is(err, bufio.ErrBufferFull) {
			tooLong = true
			_, err = in.ReadSlice('\n')
		}
		switch {
		case err == nil:
			raw = raw[:max(len(raw)-1, 0)]
		case errors.Is(err, io.EOF) && len(raw) == 0 && !tooLong:
			r.pass()
			return
		case !errors.Is(err, io.EOF): // what is left is the beginning of a line, and may mean something else than the line
			r.pass()
			r.readErr = r.why(err)
			return
		}
		r.lines++
		r.add(raw, tooLong || len(raw) > r.server.limits.line)
		if len(r.chunk) == r.server.limits.chunk || len(r.values) > r.server.limits.bytes {
			if !r.pass() {
				return
			}
		}
		if err != nil { // the last line had no end
			r.pass()
			return
		}
	}
}

// Read gives the body to the buffer. Before it waits for more, it passes on what there is: the client may be waiting
// for those answers.
func (r *lineReader) Read(p []byte) (int, error) {
	if !r.pass() {
		return 0, errBodyBroken
	}
	if r.lines != r.seen {
		r.seen, r.moved = r.lines, time.Now()
	}
	if err := r.http.SetReadDeadline(r.moved.Add(r.server.limits.idle)); err != nil {
		return 0, err
	}
	select { // after the deadline was set: whoever stops this stream sets another one
	case <-r.server.stopping:
		return 0, errStopping
	case <-r.gone:
		return 0, errBodyBroken
	default:
		return r.body.Read(p)
	}
}

func (r *lineReader) why(err error) error {
	select {
	case <-r.server.stopping:
		return errStopping
	default:
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errIdle
	}
	return errBodyBroken
}

// pass hands the chunk over and begins a new one. It waits for room, and reports whether anybody still takes chunks.
func (r *lineReader) pass() bool {
	if len(r.chunk) == 0 {
		return true
	}
	// The record begins with its key, in a fixed place: one string has all keys.
	text, start := string(r.values), 0
	for i, end := range r.ends {
		if end > start {
			e := &r.chunk[i]
			e.command.Value = r.values[start:end:end]
			e.attempt.ticket = event.CommandIDOf(text[start:end])
			e.command.Key = e.attempt.ticket
			start = end
		}
	}
	select {
	case r.chunks <- r.chunk:
	default:
		select {
		case r.chunks <- r.chunk:
		case <-r.gone:
			return false
		}
		r.moved = time.Now() // the log was slow, not the client
	}
	// What was passed on may still be on its way to the log long after its answer: nothing is used twice.
	size := r.server.limits.chunk
	r.chunk, r.ends, r.values = make([]entry, 0, size), make([]int, 0, size), make([]byte, 0, max(96*size, len(r.values)))
	return true
}

// add decodes a line.
func (r *lineReader) add(raw []byte, tooLong bool) {
	r.chunk = append(r.chunk, entry{number: r.lines})
	e := &r.chunk[len(r.chunk)-1]
	if tooLong {
		e.err = &lineError{http.StatusRequestEntityTooLarge, fmt.Sprintf("it is longer than %d bytes", r.server.limits.line)}
	} else {
		e.err = r.decode(raw, e)
	}
	r.ends = append(r.ends, len(r.values))
}

func (r *lineReader) decode(raw []byte, e *entry) error {
	w, err := decodeLine(raw)
	if err != nil {
		return err
	}
	now := r.server.now()
	at, named := instant.Cut(now), w.instant != nil
	if named {
		var plain bool
		if at, plain = instant.ParseUTC(w.instant); !plain {
			if at, err = instant.Parse(string(w.instant)); err != nil {
				return err
			}
		}
	}
	command := event.TimestampCommand{EventTimestamp: at}
	binding := func(route string) door.Binding {
		wanted := door.Now
		if named {
			wanted = instant.Format(at)
		}
		return door.Binding{Caller: r.caller, Route: route, Wanted: wanted}
	}
	switch {
	case w.id != nil:
		e.attempt.key = string(w.id)
		if e.attempt.key == "" {
			return &door.KeyError{Rule: "it is empty: leave id out to have a new ticket"}
		}
		command.CommandID, err = door.KeyTicket(e.attempt.key, binding(route), now)
	case r.key != "":
		e.attempt.key, e.attempt.line = r.key, e.number
		command.CommandID, err = door.PlaceTicket(r.key, binding(streamRoute), int(e.number), now)
	default:
		// Not the door's own kind, which belongs to one partition: a group this large has a batch for each.
		command.CommandID, err = ticket.New()
	}
	if err != nil {
		return err
	}
	r.values = event.AppendTimestampCommand(r.values, command)
	return nil
}
