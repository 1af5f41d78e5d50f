package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/tidemark/app"
	"github.com/tidemark/tidemark/tidemark/internal/client"
	"github.com/tidemark/tidemark/tidemark/internal/doctor"
)

func (c *command) doctor() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at everything Tidemark stands on, and say what to do",
		Long: `Look at everything that Tidemark stands on and say what to do about each thing that is wrong: configuration, services, brokers
and the settings of the topics, database and schema, whether both belong together, and the clocks. Nothing is changed.

It takes the services' environment. Where KAFKA_BROKERS or DB_URL is not set and a tidemark up runs on --data, it looks at
the servers of that one. The exit status is 1 when something keeps Tidemark from its promises; a warning alone leaves it 0.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			patient := c.installation(dataDir)
			if patient.Services != nil {
				defer patient.Services.Close()
			}
			findings := []doctor.Finding{}
			count := map[doctor.Status]int{}
			doctor.Examine(cmd.Context(), patient, func(f doctor.Finding) {
				findings = append(findings, f)
				count[f.Status]++
				if c.output == "text" {
					fmt.Fprintf(c.Out, "%-4s  %-22s %s\n", strings.ToUpper(string(f.Status)), f.Check, indented(f.Found))
					if f.Do != "" {
						fmt.Fprintf(c.Out, "      %-22s → %s\n", "", f.Do)
					}
				}
			})
			if c.output == "json" {
				c.print(map[string]any{"ok": count[doctor.Fail] == 0, "findings": findings})
			}
			switch {
			case count[doctor.Fail] > 0:
				return end(failed, "%d of %d checks failed, %s", count[doctor.Fail], len(findings), warnings(count[doctor.Warn]))
			case count[doctor.Warn] > 0:
				fmt.Fprintf(c.Err, "tidemark: no check failed, %s\n", warnings(count[doctor.Warn]))
			}
			return nil
		},
	}
	c.dataFlag(cmd, &dataDir)
	return c.withOutput(cmd)
}

func indented(s string) string { return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", 29)) }

// installation is what the environment names, and what a running up has where it names nothing.
func (c *command) installation(dataDir string) doctor.Installation {
	environ := map[string]string{}
	for name, value := range c.Environ {
		environ[name] = value
	}
	if running, err := app.Find(dataDir); err == nil {
		for name, value := range running.Environ() {
			if environ[name] == "" && environ[name+"_FILE"] == "" {
				environ[name] = value
			}
		}
	}
	var p doctor.Installation
	seen := map[string]bool{}
	load := func(err error) {
		for _, m := range mistakes(err) {
			if !seen[m] { // most settings belong to more than one service
				seen[m] = true
				p.Mistakes = append(p.Mistakes, errors.New(m))
			}
		}
	}
	for _, s := range app.Services() {
		load(config.Load(s.Config, environ))
	}
	services, err := client.LoadServices(environ)
	load(err)
	if services.Validate() == nil { // whatever else is mistaken
		p.Services = client.New(services)
	}
	servers := struct {
		config.Kafka
		config.Postgres
		AcceptStart []string `env:"ACCEPT_LOG_START"`
	}{Kafka: config.DefaultKafka(), Postgres: config.DefaultPostgres()}
	_ = config.Load(&servers, environ) // each service has reported what is mistaken
	p.Kafka, p.Postgres = servers.Kafka, servers.Postgres
	p.Starts, _ = kafka.ParseStarts(servers.AcceptStart) // what is mistaken is reported
	return p
}

// mistakes are the lines of a configuration's error, below its heading.
func mistakes(err error) []string {
	if err == nil {
		return nil
	}
	_, list, _ := strings.Cut(err.Error(), "\n")
	lines := strings.Split(list, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

func warnings(n int) string {
	if n == 1 {
		return "1 warning"
	}
	return fmt.Sprintf("%d warnings", n)
}
