package compose_test

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
)

const password = "0tidemark0"

// folder is that of the compose files.
func folder(t *testing.T) string {
	t.Helper()
	root, err := stack.Root()
	require.NoError(t, err)
	return filepath.Join(root, "compose")
}

var variants = map[string][]string{
	"alone":   {"docker-compose.yml"},
	"cluster": {"docker-compose.yml", "docker-compose.cluster.yml"},
}

// project loads a variant as `docker compose` would, with .env.example as it stands but for the password.
func project(t *testing.T, variant string) *types.Project {
	t.Helper()
	dir := folder(t)
	var files []string
	for _, name := range variants[variant] {
		files = append(files, filepath.Join(dir, name))
	}
	o, err := cli.NewProjectOptions(files, cli.WithWorkingDirectory(dir), cli.WithEnv(example(t)), cli.WithProfiles([]string{"*"}), cli.WithInterpolation(true))
	require.NoError(t, err)
	p, err := o.LoadProject(t.Context())
	require.NoError(t, err)
	return p
}

// example are the lines of .env.example.
func example(t *testing.T) []string {
	t.Helper()
	f, err := os.Open(filepath.Join(folder(t), ".env.example"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	var lines []string
	for in := bufio.NewScanner(f); in.Scan(); {
		line := strings.TrimSpace(in.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "POSTGRES_PASSWORD=") {
			line = "POSTGRES_PASSWORD=" + password
		}
		lines = append(lines, line)
	}
	return lines
}

// environment is that of a service, with variables that are set to nothing.
func environment(s types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for name, value := range s.Environment {
		if value != nil {
			env[name] = *value
		}
	}
	return env
}

// ours are the services that this repository's image runs.
func ours(p *types.Project) []types.ServiceConfig {
	var out []types.ServiceConfig
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if s := p.Services[name]; strings.HasPrefix(s.Image, "tidemark:") && len(s.Entrypoint) == 1 {
			out = append(out, s)
		}
	}
	return out
}
