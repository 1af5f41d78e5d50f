package compose_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/app"
)

// A version with at least two parts: what it names does not change next week.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:v?[0-9]+\.[0-9]+(\.[0-9]+)*(-[a-z0-9.]+)?(@sha256:[0-9a-f]{64})?$`)

func TestTheFilesAreWhatTheComposeSpecificationSays(t *testing.T) {
	t.Parallel()
	for variant := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			p := project(t, variant)
			for name, s := range p.Services {
				require.Regexp(t, pinned, s.Image, name)
				for _, port := range s.Ports {
					require.Equal(t, "127.0.0.1", port.HostIP, "%s is open to the world", name)
				}
				for network := range s.Networks {
					require.Contains(t, p.Networks, network, name)
				}
				for _, secret := range s.Secrets {
					require.Contains(t, p.Secrets, secret.Source, name)
				}
				for needed := range s.DependsOn {
					require.Contains(t, p.Services, needed, name)
				}
				for _, v := range s.Volumes {
					if v.Type == "bind" {
						_, err := os.Stat(v.Source)
						require.NoError(t, err, name)
					}
				}
			}
			require.True(t, p.Networks["back"].Internal, "Kafka and Postgres have no way out")
			require.Len(t, p.Services["postgres"].Networks, 1)
			require.Contains(t, p.Services["postgres"].Networks, "back")
		})
	}
}

func TestTheServicesRunWithNothingThatTheyDoNotNeed(t *testing.T) {
	t.Parallel()
	for variant := range variants {
		p := project(t, variant)
		services := 0
		for _, s := range append(ours(p), p.Services["front"], p.Services["prometheus"]) {
			require.True(t, s.ReadOnly, "%s: read_only", s.Name)
			require.Regexp(t, `^[1-9][0-9]*:[1-9][0-9]*$`, s.User, "%s: user", s.Name)
			require.Equal(t, []string{"ALL"}, s.CapDrop, "%s: cap_drop", s.Name)
			require.Contains(t, s.SecurityOpt, "no-new-privileges:true", s.Name)
			require.NotNil(t, s.HealthCheck, "%s: healthcheck", s.Name)
			require.Equal(t, "unless-stopped", s.Restart, s.Name)
			services++
		}
		require.Equal(t, map[string]int{"alone": 5, "cluster": 6}[variant], services)
		for _, s := range ours(p) { // its image holds no shell to ask with
			require.Equal(t, []string{"CMD", s.Entrypoint[0], "--healthcheck"}, []string(s.HealthCheck.Test))
		}
	}
}

// configuration of a program of the table of services, with what is every service's own.
func configuration(program string) any {
	for _, s := range app.Services() {
		if "/"+s.Name == program {
			return s.Config
		}
	}
	return nil
}

// Whoever adds a service finds here where else it must stand: both variants run every service of the table.
func TestEveryServiceOfTheTableRuns(t *testing.T) {
	t.Parallel()
	for variant := range variants {
		p := project(t, variant)
		for _, s := range service.All() {
			there, ok := p.Services[s.Name]
			require.True(t, ok, "%s has no %s", variant, s.Name)
			require.Equal(t, strconv.Itoa(s.Port), environment(there)["SERVER_PORT"], "%s: %s", variant, s.Name)
		}
	}
}

func TestEveryVariableIsOneThatItsServiceKnows(t *testing.T) {
	t.Parallel()
	for variant := range variants {
		for _, s := range ours(project(t, variant)) {
			c := configuration(s.Entrypoint[0])
			require.NotNil(t, c, s.Name)
			var known []string
			for _, setting := range config.Settings(c) {
				known = append(known, setting.Name)
			}
			env := environment(s)
			for name := range env {
				require.True(t, slices.Contains(known, name) || slices.Contains(known, strings.TrimSuffix(name, "_FILE")), "%s does not know %s", s.Name, name)
			}
			if env["API_KEYS_FILE"] != "" { // what it holds is the operator's
				env["API_KEYS_FILE"] = filepath.Join(t.TempDir(), "keys")
				newKey(t, env["API_KEYS_FILE"], "operator", "admin")
			}
			require.NoError(t, config.Load(c, env), s.Name)
		}
	}
	p := project(t, "alone")
	require.Equal(t, "timestamp-consumer-service-1", environment(p.Services["consumer-service"])["KAFKA_GROUP_ID"])
}

func TestTheClusterHasThreeBrokersThatAcknowledgeByTwo(t *testing.T) {
	t.Parallel()
	p := project(t, "cluster")
	voters := ""
	for _, name := range []string{"kafka-1", "kafka-2", "kafka-3"} {
		env := environment(p.Services[name])
		require.Equal(t, "3", env["KAFKA_DEFAULT_REPLICATION_FACTOR"])
		require.Equal(t, "2", env["KAFKA_MIN_INSYNC_REPLICAS"])
		require.Equal(t, "PLAINTEXT://"+name+":9092", env["KAFKA_ADVERTISED_LISTENERS"])
		require.Equal(t, strings.TrimPrefix(name, "kafka-"), env["KAFKA_NODE_ID"])
		if voters == "" {
			voters = env["KAFKA_CONTROLLER_QUORUM_VOTERS"]
		}
		require.Equal(t, voters, env["KAFKA_CONTROLLER_QUORUM_VOTERS"])
		require.Len(t, p.Services[name].Volumes, 1)
		require.Equal(t, name, p.Services[name].Volumes[0].Source, "a disk of its own")
	}
	for _, s := range ours(p) {
		if env := environment(s); env["KAFKA_BROKERS"] != "" {
			require.Equal(t, "kafka-1:9092,kafka-2:9092,kafka-3:9092", env["KAFKA_BROKERS"])
			require.Equal(t, "3", env["KAFKA_REPLICATION_FACTOR"])
		}
	}
	require.Contains(t, p.Services["consumer-service-2"].Networks["front"].Aliases, "consumer-service")
}

func TestEveryVariableOfTheExampleIsUsed(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for _, name := range variants["cluster"] {
		content, err := os.ReadFile(filepath.Join(folder(t), name))
		require.NoError(t, err)
		text.Write(content)
	}
	given := map[string]bool{}
	for _, line := range example(t) {
		name, _, _ := strings.Cut(line, "=")
		given[name] = true
		require.Contains(t, text.String(), "${"+name, "nothing reads it")
	}
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+)`).FindAllStringSubmatch(text.String(), -1) {
		if !slices.Contains([]string{"TIDEMARK_VERSION"}, m[1]) {
			require.True(t, given[m[1]], "%s is not in .env.example", m[1])
		}
	}
}

func TestTheAlertsFireOnWhatTheyAreFor(t *testing.T) {
	t.Parallel()
	promtool, err := stack.Program("promtool")
	require.NoError(t, err)
	for _, args := range [][]string{
		{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}, {"check", "config", "--syntax-only", "prometheus.yml"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = filepath.Join(folder(t), "prometheus")
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, "promtool %v:\n%s", args, output)
	}
	rules, err := os.ReadFile(filepath.Join(folder(t), "prometheus", "rules.yml"))
	require.NoError(t, err)
	tests, err := os.ReadFile(filepath.Join(folder(t), "prometheus", "rules_test.yml"))
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(rules, -1) {
		require.Regexp(t, `alertname: `+string(m[1])+`\n +eval_time: \w+\n +exp_alerts:\n`, string(tests), "no test sees %s fire", m[1])
	}
}
