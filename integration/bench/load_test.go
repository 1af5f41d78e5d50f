package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
)

// load sends the requests over and over, on so many connections at once and for so long, and returns how
// many answers a second began with the wanted status. Each connection waits for its answer, and begins at another
// request. It reads just enough HTTP to find where an answer ends: a full client would cost more than the server.
func load(b *testing.B, address string, requests []string, status string, connections int, during time.Duration) float64 {
	b.Helper()
	var answered atomic.Int64
	var callers sync.WaitGroup
	errs := make(chan error, connections)
	start := time.Now()
	end := start.Add(during)
	for i := range connections {
		callers.Go(func() {
			first := i * len(requests) / connections
			if err := call(address, slices.Concat(requests[first:], requests[:first]), status, end, &answered); err != nil {
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

func call(address string, requests []string, status string, end time.Time, answered *atomic.Int64) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 4096)
	for i := 0; time.Now().Before(end); i++ {
		if _, err := io.WriteString(conn, requests[i%len(requests)]); err != nil {
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

// start runs a service in this process until the benchmark ends, waits until it is ready, and returns its address.
func start(b *testing.B, run func(ctx context.Context, listening func(address string)) error) string {
	b.Helper()
	listening, ended := make(chan string, 1), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- run(ctx, func(address string) { listening <- address }) }()
	b.Cleanup(func() {
		stop()
		require.NoError(b, <-ended)
	})
	address := <-listening
	await.Until(b, func() bool {
		res, err := http.Get("http://" + address + "/ready")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return address
}

// profiled writes a profile of what run does to the file that BENCH_PROFILE names, where it names one.
func profiled(b *testing.B, run func() (perSecond float64)) {
	b.Helper()
	file := os.Getenv("BENCH_PROFILE")
	if file == "" {
		return
	}
	f, err := os.Create(file)
	require.NoError(b, err)
	require.NoError(b, pprof.StartCPUProfile(f))
	b.Logf("%.0f/s under the profile", run())
	pprof.StopCPUProfile()
	require.NoError(b, f.Close())
}
