package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/tidemark/app"
)

func (c *command) up() *cobra.Command {
	ports := app.DefaultPorts()
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
	flags.IntVar(&ports.Command, "command-port", ports.Command, "port of command-service")
	flags.IntVar(&ports.Consumer, "consumer-port", ports.Consumer, "port of consumer-service")
	flags.IntVar(&ports.Query, "query-port", ports.Query, "port of query-service and the pages")
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
	fmt.Fprintf(c.Out, `Tidemark is up, after %.1f s.

  page      %[2]s/
  commands  %[3]s    reads  %[2]s    projection  %[4]s
  Kafka     %[5]s    database  %[6]s    (tidemark env: how to join them)

Try it:
  curl -X POST %[3]s/api/v1/timestamp/2009-09-28T19:03:12Z
  curl %[2]s/api/v1/timestamp/THE-ID-IT-ANSWERED

Ctrl-C stops it; the data stays.
`, took.Seconds(), r.QueryURL, r.CommandURL, r.ConsumerURL, r.KafkaBrokers, config.MaskURL(r.DBURL))
}

func (c *command) env() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print how to reach the servers of a running up, for the shell",
		Long: `Print KAFKA_BROKERS, KAFKA_CLAIMED_PARTITIONS and DB_URL of the tidemark up that runs on a data directory, as export lines for
the shell, so that psql, kcat or a service run by hand can join it. DB_URL holds the database's password.
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
			if c.output == "json" {
				c.print(map[string]string{
					"KAFKA_BROKERS": running.KafkaBrokers, "KAFKA_CLAIMED_PARTITIONS": strconv.Itoa(running.ClaimedPartitions), "DB_URL": running.DBURL,
				})
				return nil
			}
			fmt.Fprintf(c.Out, "export KAFKA_BROKERS=%s\nexport KAFKA_CLAIMED_PARTITIONS=%d\nexport DB_URL=%s\n",
				quoted(running.KafkaBrokers), running.ClaimedPartitions, quoted(running.DBURL))
			return nil
		},
	}
	c.dataFlag(cmd, &dataDir)
	return c.withOutput(cmd)
}

func (c *command) dataFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "data", c.defaultDataDir(), "data directory")
}

// defaultDataDir is where the system's users look for the state of their programs. It does not depend on the working
// directory: two runs on one machine would want the same ports anyway.
func (c *command) defaultDataDir() string {
	home := c.Environ["HOME"]
	switch state := c.Environ["XDG_STATE_HOME"]; {
	case filepath.IsAbs(state):
		return filepath.Join(state, "tidemark")
	case os.Geteuid() == 0:
		return "/var/lib/tidemark"
	case runtime.GOOS == "darwin":
		return filepath.Join(home, "Library", "Application Support", "tidemark")
	default:
		return filepath.Join(home, ".local", "state", "tidemark")
	}
}

// quoted makes s one word of a POSIX shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
