package cli_test

import (
	"bufio"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// process is tidemark in a process of its own.
type process struct {
	*exec.Cmd
	in       io.WriteCloser
	out, err *bufio.Reader
	outPipe  io.Closer
}

func asProcess(t *testing.T, url string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), os.Args[0])}
	p.Env = append(os.Environ(), "TIDEMARK_TEST_ARGS="+strings.Join(args, " "), "TIDEMARK_TEST_URL="+url)
	var err error
	p.in, err = p.StdinPipe()
	require.NoError(t, err)
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	errs, err := p.StderrPipe()
	require.NoError(t, err)
	p.out, p.err, p.outPipe = bufio.NewReader(out), bufio.NewReader(errs), out
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	return p
}

func (p *process) line(t *testing.T, of *bufio.Reader) string {
	t.Helper()
	text, err := of.ReadString('\n')
	require.NoError(t, err)
	return text
}

var keyOfRun = regexp.MustCompile(`--key ([0-9a-f-]{36})`)

// The input stays open: each answer must come before the end that never comes.
func TestARunThatIsCutInAnyWayGoesOn(t *testing.T) {
	t.Parallel()
	// Under nohup a hang-up is ignored, by children too; a signal that is handled here has its default again in a child.
	hungUp := make(chan os.Signal, 1)
	signal.Notify(hungUp, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hungUp) })
	all := lines(50)
	for name, cut := range map[string]func(*testing.T, *process){
		"kill -9": func(t *testing.T, p *process) { require.NoError(t, p.Process.Kill()) },
		"hang-up": func(t *testing.T, p *process) { require.NoError(t, p.Process.Signal(syscall.SIGHUP)) },
		"head": func(t *testing.T, p *process) {
			require.NoError(t, p.outPipe.Close())
			_, err := io.WriteString(p.in, strings.Join(strings.SplitAfter(all, "\n")[3:20], ""))
			require.NoError(t, err)
		},
	} {
		for _, output := range []string{"text", "json"} {
			t.Run(name+" "+output, func(t *testing.T) {
				t.Parallel()
				d := &doorway{}
				server := httptest.NewServer(d)
				defer server.Close()
				p := asProcess(t, server.URL, "stamp", "--file", "-", "--output", output)
				key := keyOfRun.FindStringSubmatch(p.line(t, p.err))
				require.NotNil(t, key, "it is said before anything is sent")
				for _, line := range strings.SplitAfter(all, "\n")[:3] {
					_, err := io.WriteString(p.in, line)
					require.NoError(t, err)
					require.Contains(t, p.line(t, p.out), "timestamp.command.v1/0@")
				}
				cut(t, p)
				require.Error(t, p.Wait())

				status, _, said := d.stampAt(t, server.URL, strings.NewReader(all), "stamp", "--file", "-", "--key", key[1])
				require.Zero(t, status, said)
				require.Len(t, d.rows, 50, "no line counts twice")
				status, _, said = d.stampAt(t, server.URL, strings.NewReader(all), "stamp", "--file", "-", "--key", key[1], "--from-line", "4")
				require.Zero(t, status, said)
				require.Len(t, d.rows, 50)
			})
		}
	}
}
