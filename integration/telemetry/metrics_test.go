package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/freeport"
)

// The services are scraped as Prometheus scrapes them, by Prometheus itself, with the rules and the dashboard of
// compose/.
func TestMetricsAreNamedAsTheyShouldAndWhatTheRulesAskForIsThere(t *testing.T) {
	s := story.New(t)
	door, consumer := s.Door(), s.Consumer("")
	reader := s.Reader()
	services := map[string]*stack.Service{"command-service": door, "consumer-service": consumer, "query-service": reader}
	prometheus := startPrometheus(t, services)

	for range 20 {
		ticket, err := s.Client.Stamp(t.Context(), door.URL(), "")
		require.NoError(t, err)
		_, err = s.Client.Get(t.Context(), reader.URL()+"/api/v1/timestamp/"+ticket.ID, "Tidemark-Position", ticket.Position)
		require.NoError(t, err)
		_, err = s.Client.Get(t.Context(), reader.URL()+"/api/v1/timestamp/"+uuid.NewString())
		require.NoError(t, err)
	}
	s.RequireCleanAudit(s.DB)

	exported := map[string]bool{}
	series := 0
	for name, service := range services {
		answer, err := s.Client.Get(t.Context(), service.URL()+"/metrics")
		require.NoError(t, err)
		require.Equal(t, 200, answer.Status)
		problems, err := promlint.New(bytes.NewReader(answer.Body)).Lint()
		require.NoError(t, err)
		require.Empty(t, problems, name)
		for line := range strings.Lines(string(answer.Body)) {
			if !strings.HasPrefix(line, "#") {
				exported[regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*`).FindString(line)] = true
				series++
			}
		}
		labels := regexp.MustCompile(`[{,]([a-z_]+)="([^"]*)"`).FindAllStringSubmatch(string(answer.Body), -1)
		for _, l := range labels {
			require.NotRegexp(t, `[0-9a-f]{8}-[0-9a-f]{4}-`, l[2], "%s names one of many", l[1])
		}
	}
	require.Less(t, series, 1500, "three services at rest")

	asked := expressions(t)
	for _, e := range asked {
		for _, name := range metrics(e) {
			require.True(t, exported[name], "%s, in %s, is exported by no service", name, e)
		}
	}
	require.Greater(t, len(asked), 40)

	t.Run("Prometheus takes the rules, and no alert fires on a stack that is well", func(t *testing.T) {
		prometheus.awaitScrapes(t, s.Client, door)
		for _, e := range asked {
			_, err := prometheus.query(t, s.Client, e)
			require.NoError(t, err, e)
		}
		for _, name := range slices.Sorted(maps.Keys(services)) {
			n, err := prometheus.query(t, s.Client, `up{job="`+name+`"} == 1`)
			require.NoError(t, err)
			require.Equal(t, 1, n, name)
		}
		n, err := prometheus.query(t, s.Client, `ALERTS{alertstate="firing"}`)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// expressions are those of the rules, those of the dashboard's panels and those of its annotations.
func expressions(t *testing.T) []string {
	t.Helper()
	var all []string
	var rules struct {
		Groups []struct {
			Rules []struct{ Record, Alert, Expr string }
		}
	}
	require.NoError(t, yaml.Unmarshal(file(t, "prometheus", "rules.yml"), &rules))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all = append(all, r.Expr)
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(file(t, "grafana", "dashboards", "tidemark.json"), &board))
	for _, p := range board.Panels {
		require.True(t, p.Type == "row" || len(p.Targets) > 0, p.Title)
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

func file(t *testing.T, path ...string) []byte {
	t.Helper()
	root, err := stack.Root()
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(append([]string{root, "compose"}, path...)...))
	require.NoError(t, err)
	return content
}

var (
	matchers = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)`)
	words    = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*\s*\(?`)
)

// metrics are the names of an expression's metrics: what is no function, no operator and no recorded rule.
func metrics(expression string) []string {
	var out []string
	for _, w := range words.FindAllString(matchers.ReplaceAllString(expression, " "), -1) {
		name := strings.TrimSpace(w)
		switch {
		case strings.HasSuffix(name, "("), strings.HasPrefix(name, "tidemark:"), regexp.MustCompile(`^[smhd]$`).MatchString(name):
		case slices.Contains([]string{"and", "or", "unless", "by", "on", "offset", "bool", "up"}, name):
		default:
			if n := strings.TrimSpace(name); !slices.Contains([]string{"sum", "min", "max", "count", "avg"}, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// scraper is a Prometheus.
type scraper struct{ url string }

// startPrometheus runs one that scrapes the services each second and judges the rules of compose/ on what it sees.
func startPrometheus(t *testing.T, services map[string]*stack.Service) *scraper {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rules.yml"), file(t, "prometheus", "rules.yml"), 0o600))
	var config strings.Builder
	config.WriteString("global: { scrape_interval: 500ms, evaluation_interval: 500ms }\nrule_files: [rules.yml]\nscrape_configs:\n")
	for name, service := range services {
		u, err := url.Parse(service.URL())
		require.NoError(t, err)
		fmt.Fprintf(&config, "  - { job_name: %s, static_configs: [{ targets: [%q] }] }\n", name, u.Host)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config.String()), 0o600))
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	p := &scraper{fmt.Sprintf("http://127.0.0.1:%d", port)}
	daemon, err := stack.StartDaemon(t.Context(), filepath.Join(dir, "log"), "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+strings.TrimPrefix(p.url, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, daemon.Kill())
		if t.Failed() {
			t.Logf("the end of Prometheus's log:\n%s", daemon.LogTail())
		}
	})
	return p
}

// query asks for an expression's value and returns how many series it has.
func (p *scraper) query(t *testing.T, c *story.Client, expression string) (int, error) {
	t.Helper()
	a, err := c.Get(t.Context(), p.url+"/api/v1/query?query="+url.QueryEscape(expression))
	if err != nil {
		return 0, err
	}
	var said struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	if err := json.Unmarshal(a.Body, &said); err != nil || said.Status != "success" {
		return 0, fmt.Errorf("%s: %s", expression, a)
	}
	return len(said.Data.Result), nil
}

// awaitScrapes waits until the rules were judged on what was scraped a few times, while there is something to see.
func (p *scraper) awaitScrapes(t *testing.T, c *story.Client, door *stack.Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	require.NoError(t, story.Eventually(ctx, "Prometheus scrapes", func(ctx context.Context) error {
		if _, err := c.Stamp(ctx, door.URL(), ""); err != nil {
			return err
		}
		for _, e := range []string{`count_over_time(tidemark_door_open[1m]) >= 4`, `tidemark:lag_records`, `tidemark:projected_records:rate5m > 0`} {
			if n, err := p.query(t, c, e); err != nil || n == 0 {
				return fmt.Errorf("%s has %d series: %w", e, n, err)
			}
		}
		return nil
	}))
}
