package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

const (
	mostWaiting  = 4_096 // lines read from the file and not sent
	shownRefused = 10    // refused lines named on the standard error output
)

// bulkLine is one line of the file, as it is sent.
type bulkLine struct {
	number int64
	key    string // by which it can be sent again
	size   int64  // in the file
	body   []byte // with its end
}

// bulkAnswer is the JSON of one line's answer.
type bulkAnswer struct {
	Line     int64           `json:"line"`
	ID       string          `json:"id,omitempty"`
	Position string          `json:"position,omitempty"`
	Key      string          `json:"key,omitempty"`
	Error    *client.Problem `json:"error,omitempty"`
}

// bulkResult is what became of a file.
type bulkResult struct {
	Key      string  `json:"key"`
	Accepted int64   `json:"accepted"`
	Refused  int64   `json:"refused"`
	Unheard  int64   `json:"outcome_unknown"` // sent, and no answer says what became of it
	First    int64   `json:"from_line,omitempty"`
	Seconds  float64 `json:"seconds"`
	Rate     float64 `json:"rate"`
}

// bulk sends a file line by line over streams, as many as it takes: what a broken stream leaves without an answer, and
// what the log did not take, goes again under the same key. So a line counts once, however often it was sent.
type bulk struct {
	*command
	file     string
	key      uuid.UUID
	from     int64
	patience time.Duration

	mu      sync.Mutex
	changed *sync.Cond
	fresh   []bulkLine // read, in their order
	again   []bulkLine // to be sent again, before the fresh ones
	sent    []bulkLine // waiting for their answers, in the order of sending
	unheard int        // bytes of sent
	window  int        // most of them, as the service says; as behind a proxy before it has said so
	attempt int
	readAll bool
	readErr error
	stopped bool

	last     time.Time // of the last line that was accepted or refused for good
	lines    int64     // settled
	bytes    int64     // settled
	result   bulkResult
	refusals []string
	lineOut  *bufio.Writer // guarded by mu
}

// stampFile sends the file, which may be "-" for the standard input.
func (c *command) stampFile(ctx context.Context, file, key string, from int64, patience time.Duration) error {
	b := &bulk{command: c, file: file, from: from, patience: patience, lineOut: bufio.NewWriterSize(c.Out, 64<<10)}
	b.changed = sync.NewCond(&b.mu)
	var err error
	if b.key, err = bulkKey(key); err != nil {
		return &ended{misused, err}
	}
	in, total := io.NopCloser(c.In), int64(0)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return &ended{misused, err}
		}
		in = f
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			total = info.Size()
		}
	}
	defer in.Close()
	services, err := c.client()
	if err != nil {
		return err
	}
	defer services.Close()

	// Said before anything is sent: whatever ends this process, the run can go on.
	fmt.Fprintf(c.Err, "tidemark: the key of this run is %s; should it be cut, this goes on, and no line counts twice: %s\n", b.key, b.goOn(from))
	go b.read(in) // it ends with the input, or with the process: a read of a terminal cannot be called off
	began := time.Now()
	err = b.run(ctx, services, total)
	b.result.Seconds = time.Since(began).Seconds()
	b.result.Rate = float64(b.result.Accepted) / max(b.result.Seconds, 1e-3)
	return b.report(err)
}

// bulkKey is the key that the lines' own keys are made of: a UUIDv7, whose time they all bear, so that their tickets
// lie together in the table's index.
func bulkKey(text string) (uuid.UUID, error) {
	if text == "" {
		return uuid.NewV7()
	}
	id, err := uuid.Parse(text)
	if err != nil || id.Version() != 7 || len(text) != 36 {
		return uuid.Nil, fmt.Errorf("--key %q: with --file the key is a UUIDv7, the one that an earlier run printed", text)
	}
	return id, nil
}

// lineKey is the key of one line: the file's time, the line's number and a hash of it all. The same line of the same
// file under the same --key has the same key, and a line that was changed has another.
func lineKey(batch uuid.UUID, number int64, text []byte) string {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(number))
	h := sha256.New()
	h.Write(batch[:])
	h.Write(n[:])
	h.Write(text)
	hash := h.Sum(nil)
	id := batch // its 48 bits of time
	// Of the number, 12 bits and 22 more, so that keys ascend with the lines; then 40 bits of hash.
	low := uint64(number) & (1<<34 - 1)
	binary.BigEndian.PutUint16(id[6:], 0x7000|uint16(low>>22))
	binary.BigEndian.PutUint64(id[8:], 0x2<<62|(low&(1<<22-1))<<40|uint64(hash[0])<<32|uint64(binary.BigEndian.Uint32(hash[1:])))
	return id.String()
}

// read puts the input's lines where sending takes them.
func (b *bulk) read(in io.Reader) {
	lines := bufio.NewReaderSize(in, 64<<10)
	var err error
	for number := int64(1); err == nil; number++ {
		var text []byte
		if text, err = lines.ReadSlice('\n'); len(text) == 0 && err != nil {
			break
		}
		size := int64(len(text))
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			var more []byte
			long = true
			more, err = lines.ReadSlice('\n')
			size += int64(len(more))
		}
		if err != nil && !errors.Is(err, io.EOF) { // half a line may mean something else than the line
			break
		}
		text = bytes.TrimSpace(text)
		if number < b.from || len(text) == 0 && !long {
			b.skip(size)
			continue
		}
		line := bulkLine{number: number, size: size}
		if !long {
			line = b.prepare(number, size, text)
		}
		if long || len(line.body) > limits.Line+len("\n") {
			b.refuse(line, &client.Problem{Service: "tidemark", Status: 413, Title: "Line not accepted", Detail: fmt.Sprintf("with its key it is longer than %d bytes", limits.Line)})
			continue
		}
		if !b.put(line) {
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readAll = true
	if !errors.Is(err, io.EOF) {
		b.readErr = err
	}
	b.changed.Broadcast()
}

// prepare makes a line that can be sent more than once.
func (b *bulk) prepare(number, size int64, text []byte) bulkLine {
	line := bulkLine{number: number, size: size}
	key := lineKey(b.key, number, text)
	switch text[0] {
	case '{':
		var object struct {
			ID *string `json:"id"`
		}
		if bytes.Contains(text, []byte(`"id"`)) && json.Unmarshal(text, &object) == nil && object.ID != nil {
			line.key, line.body = *object.ID, append(bytes.Clone(text), '\n')
			return line
		}
		line.key = key
		line.body = append(append(line.body, `{"id":"`...), key...)
		line.body = append(line.body, '"')
		if rest := bytes.TrimSpace(text[1:]); len(rest) > 0 && rest[0] != '}' {
			line.body = append(line.body, ',')
		}
		line.body = append(append(line.body, text[1:]...), '\n')
	default:
		line.key = key
		instant := text
		if text[0] != '"' {
			instant, _ = json.Marshal(string(text)) // a string always marshals
		}
		line.body = append(append(line.body, `{"id":"`...), key...)
		line.body = append(append(append(line.body, `","event_timestamp":`...), instant...), "}\n"...)
	}
	return line
}

func (b *bulk) skip(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += size
}

func (b *bulk) put(line bulkLine) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.fresh) >= mostWaiting && !b.stopped {
		b.changed.Wait()
	}
	b.fresh = append(b.fresh, line)
	b.changed.Broadcast()
	return !b.stopped
}

// outgoing is the body of one attempt. It ends when every line is settled, or with the attempt.
type outgoing struct {
	*bulk
	attempt int
	rest    []byte
}

// over ends the attempt: nothing is read of it any more.
func (o *outgoing) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bulk.attempt == o.attempt {
		o.bulk.attempt++
	}
	o.changed.Broadcast()
}

// full reports whether answers must come before more is sent.
func (b *bulk) full() bool { return b.unheard >= b.window }

func (o *outgoing) Read(p []byte) (n int, err error) {
	b := o.bulk
	if len(o.rest) > 0 {
		n = copy(p, o.rest)
		o.rest = o.rest[n:]
		return n, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.again)+len(b.fresh) == 0 || b.full() {
		if b.stopped || b.attempt != o.attempt || b.readAll && len(b.again)+len(b.fresh)+len(b.sent) == 0 {
			return 0, io.EOF
		}
		b.changed.Wait()
	}
	if b.stopped || b.attempt != o.attempt {
		return 0, io.EOF
	}
	for !b.full() {
		queue := &b.again
		if len(b.again) == 0 {
			queue = &b.fresh
		}
		if len(*queue) == 0 || n > 0 && n+len((*queue)[0].body) > len(p) {
			break
		}
		line := (*queue)[0]
		*queue = (*queue)[1:]
		b.sent, b.unheard = append(b.sent, line), b.unheard+len(line.body)
		copied := copy(p[n:], line.body)
		n += copied
		if o.rest = line.body[copied:]; len(o.rest) > 0 {
			break
		}
	}
	b.changed.Broadcast()
	return n, nil
}

func (b *bulk) widen(window int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window = window
	b.changed.Broadcast()
}

// heard books an answer: they come in the order of sending.
func (b *bulk) heard(a client.LineAnswer) {
	b.mu.Lock()
	if len(b.sent) == 0 {
		b.mu.Unlock()
		return
	}
	line := b.sent[0]
	b.sent, b.unheard = b.sent[1:], b.unheard-len(line.body)
	b.changed.Broadcast()
	if a.Error != nil && a.Error.Status/100 == 5 {
		b.again = append(b.again, line)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	if a.Error != nil {
		b.refuse(line, a.Error)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Accepted++
	b.settled(line)
	b.printAnswer(bulkAnswer{Line: line.number, ID: a.ID, Position: a.Position, Key: line.key})
}

// refuse books a line that sending again would not help.
func (b *bulk) refuse(line bulkLine, why *client.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Refused++
	b.settled(line)
	if len(b.refusals) < shownRefused {
		b.refusals = append(b.refusals, fmt.Sprintf("line %d: %s", line.number, why.Words()))
	}
	b.printAnswer(bulkAnswer{Line: line.number, Key: line.key, Error: why})
}

func (b *bulk) settled(line bulkLine) {
	b.last = time.Now()
	b.lines++
	b.bytes += line.size
}

// printAnswer prints the answer of one line, where JSON is wanted or the lines come from the standard input, which may be
// without end. What was printed goes out when no more answers are awaited, and each time that show looks.
func (b *bulk) printAnswer(a bulkAnswer) {
	switch {
	case b.output == "json":
		text, _ := json.Marshal(a) // strings always marshal
		_, _ = b.lineOut.Write(append(text, '\n'))
	case b.file == "-" && a.Error == nil:
		fmt.Fprintf(b.lineOut, "line %d  %s  %s\n", a.Line, a.ID, a.Position)
	case b.file == "-":
		fmt.Fprintf(b.lineOut, "line %d  refused: %s\n", a.Line, a.Error.Words())
	}
	if len(b.sent) == 0 {
		_ = b.lineOut.Flush() // what reads it may be gone
	}
}

// goOn is the command that continues a run.
func (b *bulk) goOn(from int64) string {
	again := fmt.Sprintf("tidemark stamp --file %s --key %s", quoted(b.file), b.key)
	if from > 1 {
		again += " --from-line " + strconv.FormatInt(from, 10)
	}
	return again
}

// run sends until every line is settled, or until nothing was settled for as long as the patience goes.
func (b *bulk) run(ctx context.Context, services *client.Client, total int64) error {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		_ = b.lineOut.Flush() // what reads it may be gone
	}()
	shown := b.progress("stamping", total)
	defer shown.end()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	b.last = time.Now()
	done := make(chan struct{})
	defer close(done)
	go b.show(shown, total, giveUp, done)
	defer func() {
		b.mu.Lock()
		b.stopped = true
		b.changed.Broadcast()
		b.mu.Unlock()
	}()
	retry := loop.Backoff{First: 100 * time.Millisecond, Most: 2 * time.Second}
	for {
		b.mu.Lock()
		before := b.lines
		b.window = limits.ProxiedStream
		body := &outgoing{bulk: b, attempt: b.attempt}
		b.mu.Unlock()
		err := services.StampStream(ctx, body, b.widen, body.over, b.heard)
		body.over()
		b.mu.Lock()
		b.again = append(b.sent, b.again...)
		b.sent, b.unheard = nil, 0
		b.changed.Broadcast()
		finished := b.readAll && len(b.again)+len(b.fresh) == 0
		if b.lines > before {
			retry.Reset()
		}
		readErr := b.readErr
		b.mu.Unlock()
		if finished {
			return readErr
		}
		if cause := context.Cause(ctx); cause != nil {
			return errors.Join(cause, err)
		}
		var refused *client.Problem
		if errors.As(err, &refused) && refused.Status/100 == 4 && refused.Status != 408 {
			return err
		}
		if cause := retry.Sleep(ctx); cause != nil {
			return errors.Join(cause, err)
		}
	}
}

// show shows how far it is, and ends the run when nothing moves for too long while something is to be sent.
func (b *bulk) show(p *progress, total int64, giveUp context.CancelCauseFunc, done <-chan struct{}) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-tick.C:
		case <-done:
			return
		}
		b.mu.Lock()
		waiting := len(b.again)+len(b.sent)+len(b.fresh) > 0
		if !waiting {
			b.last = time.Now() // there is nothing to send
		}
		quiet := time.Since(b.last)
		note := fmt.Sprintf("%d lines, %.0f/s", b.lines, float64(b.lines)/time.Since(began).Seconds())
		if b.result.Refused > 0 {
			note += fmt.Sprintf(", %d refused", b.result.Refused)
		}
		if waiting && quiet > time.Second {
			note += fmt.Sprintf(", waiting for the door since %.0f s", quiet.Seconds())
		}
		settled := b.bytes
		_ = b.lineOut.Flush()
		b.mu.Unlock()
		p.at(settled, total, "stamping", note)
		if waiting && quiet > b.patience {
			giveUp(fmt.Errorf("no line was accepted for %s", b.patience))
		}
	}
}

// report says what became of the file, and how to go on where it is not done.
func (b *bulk) report(failure error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &b.result
	r.Key = b.key.String()
	r.Unheard = int64(len(b.again))
	left := append(append([]bulkLine{}, b.again...), b.fresh...)
	for _, line := range left {
		if r.First == 0 || line.number < r.First {
			r.First = line.number
		}
	}
	if b.output == "json" {
		text, _ := json.Marshal(map[string]any{"summary": r}) // numbers and strings always marshal
		_, _ = b.Out.Write(append(text, '\n'))
	} else {
		rows := [][2]string{{"accepted", strconv.FormatInt(r.Accepted, 10)}}
		if r.Refused > 0 {
			rows = append(rows, [2]string{"refused", strconv.FormatInt(r.Refused, 10)})
		}
		rows = append(rows, [2]string{"took", fmt.Sprintf("%.1f s, %.0f a second", r.Seconds, r.Rate)}, [2]string{"key", r.Key})
		b.print(nil, rows...)
	}
	for _, refusal := range b.refusals {
		fmt.Fprintf(b.Err, "tidemark: %s\n", refusal)
	}
	if more := r.Refused - int64(len(b.refusals)); more > 0 {
		fmt.Fprintf(b.Err, "tidemark: and %d refused lines more (all of them with --output json)\n", more)
	}
	if failure == nil {
		if r.Refused > 0 {
			return end(refused, "%d of %d lines were refused; mend them and send those lines in a file of their own", r.Refused, r.Refused+r.Accepted)
		}
		return nil
	}
	var whole *client.Problem
	if errors.As(failure, &whole) && whole.Status/100 == 4 && r.Accepted == 0 || r.Accepted+r.Unheard == 0 {
		return requestFailed(failure)
	}
	where := "the input ended early"
	if r.First > 0 {
		where = fmt.Sprintf("every line below %d is settled", r.First)
	}
	again := b.goOn(r.First)
	advice := "This sends the rest; lines that were accepted already count once: " + again
	if b.file == "-" {
		advice = "Feed the same input to this for the rest; lines that were accepted already count once: " + again
	}
	return end(uncertain, "%w\n%d lines were accepted; %d were sent and their outcome is unknown; %s.\n%s", failure, r.Accepted, r.Unheard, where, advice)
}
