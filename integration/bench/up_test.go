package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/freeport"
)

// BenchmarkUp measures the time from starting tidemark up, on data that is there and with binaries that are
// fetched, to the first POST that it accepts.
func BenchmarkUp(b *testing.B) {
	times := 5
	if testing.Short() {
		times = 1
	}
	dir := scratch(b, "data")
	up(b, dir) // makes the data
	for b.Loop() {
		runs := make([]run, times)
		for i := range runs {
			runs[i].Value = up(b, dir).Seconds()
		}
		report(b, "up-to-first-post", "s", runs)
	}
}

func up(b *testing.B, dir string) time.Duration {
	b.Helper()
	var ports [5]string
	for i := range ports {
		port, err := freeport.Find(b.Context())
		require.NoError(b, err)
		ports[i] = strconv.Itoa(port)
	}
	log, err := os.Create(filepath.Join(filepath.Dir(dir), "log"))
	require.NoError(b, err)
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.CommandContext(b.Context(), program(b, "tidemark"), "up", "--data", dir,
		"--command-port", ports[0], "--consumer-port", ports[1], "--query-port", ports[2], "--kafka-port", ports[3], "--postgres-port", ports[4])
	cmd.Stdout, cmd.Stderr = log, log
	start := time.Now()
	require.NoError(b, cmd.Start())
	client := newClient()
	defer client.CloseIdleConnections()
	await.Until(b, func() bool {
		posted, err := ask(b.Context(), client, "POST", "http://127.0.0.1:"+ports[0]+"/api/v1/timestamp", "")
		return err == nil && posted.status == 202
	})
	took := time.Since(start)
	require.NoError(b, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(b, cmd.Wait())
	return took
}
