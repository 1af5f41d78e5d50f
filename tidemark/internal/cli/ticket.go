package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/query"
)

func (c *command) ticket() *cobra.Command {
	var position string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "ticket ID",
		Short: "Say what became of an accepted command",
		Long: `Say what became of an accepted command: applied, duplicate, rejected, pending or unknown.

With the position that came with the ticket the answer is exact. Without it, a ticket that is not there is unknown: it may
still come.
` + exitStatuses,
		Example: "  tidemark ticket 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f --position timestamp.command.v1/3@42 --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			t, err := services.Ticket(cmd.Context(), args[0], position, wait)
			if err != nil {
				return requestFailed(err)
			}
			c.print(t,
				[2]string{"ticket", t.Id}, [2]string{"state", string(t.State)}, [2]string{"projection", text(t.Projection)}, [2]string{"position", text(t.Position)},
				[2]string{"row_position", text(t.RowPosition)}, [2]string{"event_timestamp", text(t.EventTimestamp)}, [2]string{"created_at", text(t.CreatedAt)},
				[2]string{"reason_code", text(t.ReasonCode)}, [2]string{"reason", text(t.Reason)}, [2]string{"reached", text(t.Reached)}, [2]string{"as_of", text(t.AsOf)})
			return ticketStatus(t)
		},
	}
	cmd.Flags().StringVar(&position, "position", "", "position that came with the ticket, topic/partition@offset")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long while the answer is open; --wait alone means 5s")
	cmd.Flags().Lookup("wait").NoOptDefVal = "5s"
	return c.withOutput(cmd)
}

func ticketStatus(t query.Ticket) error {
	switch t.State {
	case query.Applied, query.Duplicate:
		return nil
	case query.Rejected:
		return end(rejected, "the record is a dead letter")
	default:
		return end(notYet, "the ticket is %s", t.State)
	}
}
