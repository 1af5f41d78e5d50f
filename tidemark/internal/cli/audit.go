package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/tidemark/internal/client"
)

func (c *command) audit() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Say whether the tables hold what was counted",
		Long: `Say whether the tables hold what was counted: the last audit's findings, or with --now those of one that is run now.

An audit compares rows and dead letters with the counts of every partition, in one snapshot, so that a lost row shows. The
exit status is 1 when it has found something, or has not been run.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			if !now {
				p, _, err := services.Projection(cmd.Context())
				if err != nil {
					return requestFailed(err)
				}
				c.print(p.Audit, auditRows(p)...)
				if p.Audit.OK == nil {
					return end(failed, "not every partition was audited yet: tidemark audit --now does it")
				}
				if !*p.Audit.OK {
					return auditFound()
				}
				return nil
			}
			shown := c.progress("auditing", 0)
			shown.at(0, 0, "auditing", "rows and dead letters of all partitions")
			a, err := services.Audit(cmd.Context())
			shown.end()
			if err != nil {
				return requestFailed(err)
			}
			rows := [][2]string{{"audited at", a.AuditedAt}}
			for _, p := range a.Partitions {
				rows = append(rows, [2]string{partitionName(p), auditWords(p)})
			}
			c.print(a, rows...)
			if !a.OK {
				return auditFound()
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "run one now and wait for it")
	return c.withOutput(cmd)
}

func auditFound() error {
	return end(failed, "the audit has found something: what is in the tables is not what was counted\nThe log still has it: start consumer-service under a KAFKA_GROUP_ID that never served, and it reads everything again")
}

func partitionName(p client.PartitionAudit) string {
	if p.Topic == "" {
		return fmt.Sprintf("partition %d", p.Partition)
	}
	return fmt.Sprintf("%s/%d", p.Topic, p.Partition)
}

func auditWords(p client.PartitionAudit) string {
	if !p.OK {
		return "NOT ok: " + p.Finding
	}
	return fmt.Sprintf("ok: %d rows, %d dead letters", p.RowsFound, p.DeadLettersFound)
}
