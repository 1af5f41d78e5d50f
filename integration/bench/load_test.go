package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// load sends request over and over, on so many connections at once and for so long, and returns how
// many answers a second began with the wanted status. Each connection waits for its answer. It reads
// just enough HTTP to find where an answer ends: a full client would cost more than the server.
func load(b *testing.B, address, request, status string, connections int, during time.Duration) float64 {
	b.Helper()
	var answered atomic.Int64
	var callers sync.WaitGroup
	errs := make(chan error, connections)
	start := time.Now()
	end := start.Add(during)
	for range connections {
		callers.Go(func() {
			if err := call(address, request, status, end, &answered); err != nil {
				errs <- err
			}
		})
	}
	callers.Wait()
	took := time.Since(start)
	close(errs)
	require.NoError(b, <-errs)
	return float64(answered.Load()) / took.Seconds()
}

func call(address, request, status string, end time.Time, answered *atomic.Int64) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 4096)
	out := []byte(request)
	for time.Now().Before(end) {
		if _, err := conn.Write(out); err != nil {
			return err
		}
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) < 12 || string(line[9:12]) != status {
			rest, _ := io.ReadAll(io.LimitReader(in, 600)) // for the message only
			return fmt.Errorf("%s%s", line, rest)
		}
		length := -1
		for {
			line, err = in.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return err
				}
			}
		}
		if length < 0 {
			return errors.New("an answer without a length")
		}
		if _, err := in.Discard(length); err != nil {
			return err
		}
		answered.Add(1)
	}
	return nil
}
