package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/app"
)

func (c *command) up() *cobra.Command {
	ports := app.DefaultPorts()
	chosen := map[string]*int{} // ports of the services, by name
	var dataDir string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in this process, until Ctrl-C",
		Long: `Run every service in this process, on an embedded Kafka broker and a private PostgreSQL 18, until Ctrl-C.

What is stored stays in the data directory, over a stop and over a kill. The first start on a machine fetches PostgreSQL
(15 MB). KAFKA_BROKERS and DB_URL name servers of your own, which are then used instead; the services take all their other
settings from the environment too. Logs go to the standard error output, warnings and above unless LOG_LEVEL says else.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			ports.Services = map[string]int{}
			for name, port := range chosen {
				ports.Services[name] = *port
			}
			say := c.Out
			if c.output == "json" { // where everything is, once it is up; words for people go elsewhere
				say = c.Err
			}
			options := app.Options{
				DataDir: dataDir, Ports: ports, Environ: c.Environ, LogTo: c.Err,
				Waiting: func(reasons []string) {
					fmt.Fprintf(say, "Waiting: %s\n", strings.Join(reasons, "; "))
				},
				Ready: func(r app.Running) { c.welcome(r, time.Since(began)) },
			}
			if err := options.Validate(); err != nil {
				return &ended{misused, err}
			}
			fmt.Fprintf(say, "Starting Tidemark on %s\n", dataDir)
			if brokers := c.Environ["KAFKA_BROKERS"]; brokers != "" {
				fmt.Fprintf(say, "KAFKA_BROKERS is set: using Kafka at %s, no embedded broker (unset it to have one)\n", brokers)
			}
			if url := c.Environ["DB_URL"]; url != "" {
				fmt.Fprintf(say, "DB_URL is set: using %s, no private PostgreSQL (unset it to have one)\n", config.MaskURL(url))
			}
			if err := app.Run(cmd.Context(), options); err != nil {
				return &ended{failed, err}
			}
			fmt.Fprintln(say, "Stopped. The data stays in", dataDir)
			return nil
		},
	}
	c.dataFlag(cmd, &dataDir)
	flags := cmd.Flags()
	for _, s := range service.All() {
		chosen[s.Name] = flags.Int(s.Short()+"-port", s.Port, "port of "+s.Name+": "+s.About)
	}
	flags.IntVar(&ports.Kafka, "kafka-port", ports.Kafka, "port of the embedded broker")
	flags.IntVar(&ports.Postgres, "postgres-port", ports.Postgres, "port of the private PostgreSQL")
	return c.withOutput(cmd)
}

func (c *command) welcome(r app.Running, took time.Duration) {
	if c.output == "json" {
		r.DBURL = config.MaskURL(r.DBURL) // tidemark env has it whole
		c.print(r)
		return
	}
	fmt.Fprintf(c.Out, "Tidemark is up, after %.1f s.\n\n", took.Seconds())
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  the page\t%s/\n", r.Services[service.Query.Name])
	for _, s := range service.All() {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Name, r.Services[s.Name], s.About)
	}
	fmt.Fprintf(w, "  Kafka\t%s\ttidemark env: how to join it\n  database\t%s\n", r.KafkaBrokers, config.MaskURL(r.DBURL))
	_ = w.Flush()
	fmt.Fprintf(c.Out, `
Try it:
  curl -X POST %s/api/v1/timestamp/2009-09-28T19:03:12Z
  curl %s/api/v1/timestamp/THE-ID-IT-ANSWERED

Ctrl-C stops it; the data stays.
`, r.Services[service.Command.Name], r.Services[service.Query.Name])
}

func (c *command) env() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print how to reach the servers and services of a running up, for the shell",
		Long: `Print KAFKA_BROKERS, KAFKA_CLAIMED_PARTITIONS, DB_URL and the services' URLs of the tidemark up that runs on a data directory, as
export lines for the shell, so that psql, kcat, a service run by hand or another tidemark can join it. DB_URL holds the
database's password.
` + exitStatuses,
		Example: `  eval "$(tidemark env)" && psql "$DB_URL"`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			running, err := app.Find(dataDir)
			if errors.Is(err, app.ErrNotRunning) {
				return end(notYet, "%w. Start one: tidemark up --data %s", err, quoted(dataDir))
			}
			if err != nil {
				return &ended{failed, err}
			}
			environ := running.Environ()
			if c.output == "json" {
				c.print(environ)
				return nil
			}
			for _, name := range slices.Sorted(maps.Keys(environ)) {
				fmt.Fprintf(c.Out, "export %s=%s\n", name, quoted(environ[name]))
			}
			return nil
		},
	}
	c.dataFlag(cmd, &dataDir)
	return c.withOutput(cmd)
}

func (c *command) dataFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "data", usualDataDir(c.Environ, runtime.GOOS, os.Geteuid() == 0), "data directory")
}

// usualDataDir is where the system's users look for the state of their programs. It does not depend on the working
// directory: two runs on one machine would want the same ports anyway. Empty where no home is known.
func usualDataDir(environ map[string]string, system string, root bool) string {
	home := environ["HOME"]
	switch state := environ["XDG_STATE_HOME"]; {
	case filepath.IsAbs(state):
		return filepath.Join(state, "tidemark")
	case root:
		return "/var/lib/tidemark"
	case !filepath.IsAbs(home):
		return "" // whoever needs a data directory says so
	case system == "darwin":
		return filepath.Join(home, "Library", "Application Support", "tidemark")
	default:
		return filepath.Join(home, ".local", "state", "tidemark")
	}
}

// quoted makes s one word of a POSIX shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
