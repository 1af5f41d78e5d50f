package compose_test

import (
	"context"
	"crypto/tls"
	"database/sql"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/freeport"
)

// byHand is a compose project that runs without containers: the programs that the image holds, built by what builds
// them there, with the environment that the files give them. Only where things are is changed: names and ports of
// containers become ports of this host, and paths within a container paths of a temporary folder.
type byHand struct {
	t        *testing.T
	project  *types.Project
	dir      string
	key      string            // an admin's
	places   map[string]string // host:port in the files → host:port here
	services map[string]*stack.Service
	front    string // its URL
}

// build runs compose/build, as the Dockerfile does, and setup, as an operator does.
func newByHand(t *testing.T, variant string) *byHand {
	t.Helper()
	h := &byHand{t: t, project: project(t, variant), dir: t.TempDir(), places: map[string]string{}, services: map[string]*stack.Service{}}
	output, err := exec.CommandContext(t.Context(), filepath.Join(folder(t), "build"), h.dir).CombinedOutput()
	require.NoError(t, err, "%s", output)
	h.key = h.setup()
	return h
}

// setup runs compose/setup in a copy of its folder, with the programs of the image in the container's stead.
func (h *byHand) setup() (key string) {
	h.t.Helper()
	for _, name := range []string{"setup", ".env.example"} {
		content, err := os.ReadFile(filepath.Join(folder(h.t), name))
		require.NoError(h.t, err)
		require.NoError(h.t, os.WriteFile(filepath.Join(h.dir, name), content, 0o700))
	}
	cmd := exec.CommandContext(h.t.Context(), filepath.Join(h.dir, "setup"))
	cmd.Env = append(os.Environ(), "TIDEMARK_KEYS="+filepath.Join(h.dir, "tidemark")+" keys", "API_KEYS_FILE="+filepath.Join(h.dir, "api-keys"))
	output, err := cmd.CombinedOutput()
	require.NoError(h.t, err, "%s", output)
	made := regexp.MustCompile(`your own key, kept nowhere: (tmk_\S+)`).FindSubmatch(output)
	require.NotNil(h.t, made, "%s", output)
	env, err := os.ReadFile(filepath.Join(h.dir, ".env"))
	require.NoError(h.t, err)
	require.NotContains(h.t, string(env), "change-me")
	return string(made[1])
}

// cluster starts the brokers of the project with the settings of the files.
func (h *byHand) cluster(ctx context.Context) *stack.Cluster {
	h.t.Helper()
	settings := map[string]string{}
	for name, value := range environment(h.project.Services["kafka-1"]) {
		setting, ours := strings.CutPrefix(name, "KAFKA_")
		switch setting {
		// Where it is and whom it knows, and the JVM's.
		case "NODE_ID", "PROCESS_ROLES", "CONTROLLER_QUORUM_VOTERS", "LISTENERS", "ADVERTISED_LISTENERS",
			"CONTROLLER_LISTENER_NAMES", "LISTENER_SECURITY_PROTOCOL_MAP", "LOG_DIRS", "HEAP_OPTS":
			continue
		}
		if ours {
			settings[strings.ReplaceAll(strings.ToLower(setting), "_", ".")] = value
		}
	}
	c, err := stack.StartCluster(ctx, 3, stack.KafkaOptions{FastStart: true, Settings: settings})
	require.NoError(h.t, err)
	h.t.Cleanup(func() {
		if h.t.Failed() {
			for i, k := range c.Nodes() {
				h.t.Logf("the end of the log of kafka-%d:\n%s", i+1, k.LogTail())
			}
		}
		require.NoError(h.t, c.Close(context.Background()))
	})
	for i, k := range c.Nodes() {
		h.places[fmt.Sprintf("kafka-%d:9092", i+1)] = k.Brokers()[0]
	}
	return c
}

// run starts the services of this repository's image.
func (h *byHand) run(databaseURL string) {
	h.t.Helper()
	for _, s := range ours(h.project) {
		port, err := freeport.Find(h.t.Context())
		require.NoError(h.t, err)
		h.places[s.Name+":"+environment(s)["SERVER_PORT"]] = "127.0.0.1:" + strconv.Itoa(port)
	}
	port, err := freeport.Find(h.t.Context())
	require.NoError(h.t, err)
	h.front = "https://localhost:" + strconv.Itoa(port)
	h.places["localhost:8443"] = "localhost:" + strconv.Itoa(port)
	h.places["0.0.0.0"] = "127.0.0.1"
	h.places["/keys/api-keys"] = filepath.Join(h.dir, "api-keys")
	h.places["postgres://tidemark:"+password+"@postgres:5432/tidemark?sslmode=disable"] = databaseURL
	for _, s := range ours(h.project) {
		env := environment(s)
		for name, value := range env {
			env[name] = h.translated(value)
		}
		_, env["SERVER_PORT"], _ = strings.Cut(h.places[s.Name+":"+env["SERVER_PORT"]], ":")
		program := filepath.Join(h.dir, s.Entrypoint[0])
		requireStatic(h.t, program)
		service, err := stack.StartService(h.t.Context(), stack.ServiceOptions{Program: program, Env: env, Log: filepath.Join(h.dir, s.Name+".log")})
		require.NoError(h.t, err)
		h.t.Cleanup(func() {
			_ = service.Kill() // it may have ended
			if h.t.Failed() {
				h.t.Logf("the end of the log of %s:\n%s", s.Name, service.LogTail())
			}
		})
		h.services[s.Name] = service
		h.healthcheck(s, program, env)
	}
	for name, s := range h.services {
		ctx, cancel := context.WithTimeout(h.t.Context(), story.Patience)
		require.NoError(h.t, s.Ready(ctx), name)
		cancel()
	}
	h.nginx()
}

// translated replaces the places of the files by those of this host.
func (h *byHand) translated(text string) string {
	var pairs []string
	for there, here := range h.places {
		pairs = append(pairs, there, here)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// requireStatic requires a program that needs nothing of the image that it runs in.
func requireStatic(t *testing.T, program string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	f, err := elf.Open(program)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	libraries, err := f.ImportedLibraries()
	require.NoError(t, err)
	require.Empty(t, libraries, program)
	for _, p := range f.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type, "%s wants a loader", program)
	}
}

// healthcheck runs the service's own until it says that it is alive.
func (h *byHand) healthcheck(s types.ServiceConfig, program string, env map[string]string) {
	h.t.Helper()
	await.Until(h.t, func() bool {
		cmd := exec.CommandContext(h.t.Context(), program, s.HealthCheck.Test[2:]...)
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		return cmd.Run() == nil
	}, "%s is not healthy", s.Name)
}

// nginx runs the front with its configuration, where it may write and with the upstreams where they are.
func (h *byHand) nginx() {
	h.t.Helper()
	nginx, err := stack.Program("nginx")
	require.NoError(h.t, err)
	content, err := os.ReadFile(filepath.Join(folder(h.t), "nginx", "nginx.conf"))
	require.NoError(h.t, err)
	here := filepath.Join(h.dir, "front")
	require.NoError(h.t, os.Mkdir(here, 0o777))
	_, port, _ := strings.Cut(strings.TrimPrefix(h.front, "https://"), ":")
	for there, place := range map[string]string{
		"/tmp/": here + "/", "/dev/stdout": here + "/access.log", "/dev/stderr": here + "/error.log", "listen 8443 ": "listen 127.0.0.1:" + port + " ",
		"/run/secrets/tls_certificate": filepath.Join(h.dir, "secrets", "tls.crt"), "/run/secrets/tls_key": filepath.Join(h.dir, "secrets", "tls.key"),
	} {
		require.Contains(h.t, string(content), there)
		h.places[there] = place
	}
	text := h.translated(string(content))
	file := filepath.Join(here, "nginx.conf")
	require.NoError(h.t, os.WriteFile(file, []byte(text), 0o600))
	output, err := exec.CommandContext(h.t.Context(), nginx, "-t", "-c", file, "-p", here).CombinedOutput()
	require.NoError(h.t, err, "%s", output)
	front, err := stack.StartDaemon(h.t.Context(), filepath.Join(here, "error.log"), "nginx", "-c", file, "-p", here, "-g", "daemon off; master_process off;")
	require.NoError(h.t, err)
	h.t.Cleanup(func() {
		require.NoError(h.t, front.Kill())
		if h.t.Failed() {
			h.t.Logf("the end of the front's errors:\n%s", front.LogTail())
		}
	})
	await.Until(h.t, func() bool {
		a, err := h.do(http.MethodGet, "/health", "")
		return err == nil && a.Status == http.StatusOK
	}, "the front")
}

// insecure believes the front's certificate, which signs itself.
var insecure = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 64, //nolint:gosec // see above
}}

// do asks the front, with a key where one is given and headers as name, value pairs.
func (h *byHand) do(method, path, key string, headers ...string) (a story.Answer, err error) {
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.front+path, nil)
	if err != nil {
		return a, err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := insecure.Do(req)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	body, err := io.ReadAll(res.Body)
	return story.Answer{Status: res.StatusCode, Header: res.Header, Body: body}, err
}

// ask sends a request past the front.
func ask(t *testing.T, req *http.Request) story.Answer {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return story.Answer{Status: res.StatusCode, Header: res.Header, Body: body}
}

func connect(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}
