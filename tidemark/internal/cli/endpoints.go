package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	door "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// listPage is how many items one request for a list asks for.
const listPage = 500

func (c *command) endpoints() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "endpoints",
		Short: "List, show, put and delete endpoints: the URLs that are to be checked",
		Long: `List, show, put and delete endpoints: the URLs that are to be checked.

Every change is a command in the log. It has a ticket, and it is seen by readers as soon as the projection has passed it.
` + exitStatuses,
	}
	cmd.AddCommand(c.endpointsList(), c.endpointsGet(), c.endpointsPut(), c.endpointsDelete(), c.endpointsHistory())
	return cmd
}

// upTo gathers at most limit items, page by page, and returns where the list goes on; "" is its end.
func upTo[T any](limit int, after string, page func(after string, limit int) ([]T, string, error)) ([]T, string, error) {
	items := []T{}
	for len(items) < limit {
		more, next, err := page(after, min(limit-len(items), listPage))
		if err != nil {
			return nil, "", requestFailed(err)
		}
		items, after = append(items, more...), next
		if next == "" {
			break
		}
	}
	return items, after, nil
}

func (c *command) endpointsList() *cobra.Command {
	var s client.EndpointSearch
	var limit int
	var after string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the endpoints as they are now, by name",
		Long:    "List the endpoints as they are now, by name.\n" + exitStatuses,
		Example: "  tidemark endpoints list --group shop --tag eu",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				items, next, err := upTo(limit, after, func(after string, limit int) ([]query.Endpoint, string, error) {
					return services.Endpoints(cmd.Context(), s, after, limit)
				})
				if err != nil {
					return err
				}
				if c.output == "json" {
					c.print(map[string]any{"items": items, "next": next})
					return nil
				}
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				for _, e := range items {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Id, oneLine(e.Name, 40), oneLine(e.Url, 80), every(e), oneLine(e.Group, 40), oneLine(strings.Join(e.Tags, ","), 40))
				}
				_ = w.Flush()
				c.more(next)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&s.Group, "group", "", "of this group only")
	cmd.Flags().StringVar(&s.Tag, "tag", "", "with this tag only")
	cmd.Flags().StringVarP(&s.Text, "search", "q", "", "a text in the name or the URL")
	c.pageFlags(cmd, &limit, &after)
	return c.withOutput(cmd)
}

// pageFlags bound a list.
func (c *command) pageFlags(cmd *cobra.Command, limit *int, after *string) {
	cmd.Flags().IntVar(limit, "limit", 50, "most items to list")
	cmd.Flags().StringVar(after, "after", "", "go on from here: what the list before has printed")
}

// more says where a list goes on.
func (c *command) more(next string) {
	if next != "" {
		fmt.Fprintf(c.Err, "tidemark: there are more: --after %s\n", next)
	}
}

func every(e query.Endpoint) string {
	if !e.Enabled {
		return "disabled"
	}
	return "every " + e.Interval
}

func (c *command) endpointsGet() *cobra.Command {
	var at string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show one endpoint as it is now",
		Long: `Show one endpoint as it is now, or as it is once the projection has passed the position of a change.
` + exitStatuses,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				e, err := services.Endpoint(cmd.Context(), args[0], at, wait)
				if err != nil {
					return requestFailed(err)
				}
				c.print(e,
					[2]string{"id", e.Id}, [2]string{"name", e.Name}, [2]string{"url", e.Url}, [2]string{"group", e.Group},
					[2]string{"tags", strings.Join(e.Tags, ", ")}, [2]string{"interval", e.Interval}, [2]string{"enabled", strconv.FormatBool(e.Enabled)},
					[2]string{"added", e.CreatedAt}, [2]string{"changed", e.ChangedAt}, [2]string{"changed by", e.ChangedBy},
					[2]string{"ticket", e.Ticket}, [2]string{"position", e.Position})
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&at, "position", "", "position of a change that must have been passed, topic/partition@offset")
	cmd.Flags().DurationVar(&wait, "wait", 5*time.Second, "with --position: how long to wait for that")
	return c.withOutput(cmd)
}

// changeOptions are those of every command that changes an endpoint.
type changeOptions struct {
	key  string
	wait time.Duration
}

func (o *changeOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.key, "key", "", "key of the command (a UUID); a fresh one where none is given")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "wait so long until readers see it; --wait alone means 5s")
	cmd.Flags().Lookup("wait").NoOptDefVal = "5s"
}

func (c *command) endpointsPut() *cobra.Command {
	var o changeOptions
	var e door.Endpoint
	var name, group, interval string
	var tags []string
	var disabled bool
	cmd := &cobra.Command{
		Use:   "put [ID] --url URL",
		Short: "Add an endpoint, or say how one shall be",
		Long: `Add an endpoint, which gets an id, or say how the endpoint with the id that is given shall be. A put is the whole endpoint: what
is left out gets its default, whatever it was before.

Every command is sent with a key, so that one whose outcome is unknown can be repeated with the same key.
` + exitStatuses,
		Example: "  tidemark endpoints put --url https://example.org/ --interval 30s --tag eu --wait",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.Name, e.Group, e.Interval = chosenText(name), chosenText(group), chosenText(interval)
			if len(tags) > 0 {
				e.Tags = &tags
			}
			if disabled {
				enabled := false
				e.Enabled = &enabled
			}
			id := strings.Join(args, "")
			return c.change(cmd.Context(), o, func(services *client.Client, key string) (client.AcceptedEndpoint, error) {
				return services.PutEndpoint(cmd.Context(), id, e, key)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.Url, "url", "", "what is to be checked: an absolute http or https URL (required)")
	_ = cmd.MarkFlagRequired("url")
	f.StringVar(&name, "name", "", "what people call it; host and path of the URL unless given")
	f.StringVar(&group, "group", "", "the group that it belongs to")
	f.StringSliceVar(&tags, "tag", nil, "a tag; several by commas or by several flags")
	f.StringVar(&interval, "interval", "", "time between two checks, 5s to 24h; 1m unless given")
	f.BoolVar(&disabled, "disabled", false, "keep it, and do not check it")
	o.flags(cmd)
	return c.withOutput(cmd)
}

// chosenText is a member that is left out where it was not given.
func chosenText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (c *command) endpointsDelete() *cobra.Command {
	var o changeOptions
	var sure consent
	cmd := &cobra.Command{
		Use:   "delete ID",
		Short: "Delete an endpoint",
		Long: `Delete an endpoint. Its history stays, and a later put of the same id makes it anew. It asks first; where there is no terminal to
ask at it needs --yes.
` + exitStatuses,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			agreed, err := c.agrees(cmd.Context(), sure, "the endpoint "+args[0]+" will be deleted: it is checked no more")
			if !agreed {
				return err
			}
			return c.change(cmd.Context(), o, func(services *client.Client, key string) (client.AcceptedEndpoint, error) {
				return services.DeleteEndpoint(cmd.Context(), args[0], key)
			})
		},
	}
	o.flags(cmd)
	sure.flags(cmd)
	return c.withOutput(cmd)
}

// changed is the JSON answer of a change.
type changed struct {
	client.AcceptedEndpoint
	Key   string            `json:"key"`
	State query.TicketState `json:"state,omitempty"`
}

// change sends one command and, where that is wanted, waits until readers see what became of it.
func (c *command) change(ctx context.Context, o changeOptions, send func(*client.Client, string) (client.AcceptedEndpoint, error)) error {
	if o.key == "" {
		id, err := ticket.New()
		if err != nil {
			return &ended{failed, err}
		}
		o.key = id.String()
	}
	return c.withServices(func(services *client.Client) error {
		sent, err := send(services, o.key)
		if outcomeUnknown(err) {
			return end(uncertain, "%w\nThe command may have been accepted. The same command with --key %s repeats it safely.", err, o.key)
		}
		if err != nil {
			return requestFailed(err)
		}
		answer := changed{AcceptedEndpoint: sent, Key: o.key}
		rows := [][2]string{{"endpoint", sent.EndpointId}, {"ticket", sent.Id}, {"position", sent.Position}}
		if o.wait == 0 {
			c.print(answer, rows...)
			return nil
		}
		t, err := services.Ticket(ctx, sent.Id, sent.Position, o.wait)
		if err != nil {
			c.print(answer, rows...)
			return requestFailed(fmt.Errorf("accepted, but it was not seen within %s: %w", o.wait, err))
		}
		answer.State = t.State
		c.print(answer, append(rows, [2]string{"state", string(t.State)}, [2]string{"reason", text(t.Reason)})...)
		return ticketStatus(t)
	})
}

func (c *command) endpointsHistory() *cobra.Command {
	var limit int
	var after string
	cmd := &cobra.Command{
		Use:   "history ID",
		Short: "Say who changed what of an endpoint, and when",
		Long:  "Say who changed what of an endpoint, and when, the newest change first; of a deleted one too.\n" + exitStatuses,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				items, next, err := upTo(limit, after, func(after string, limit int) ([]query.EndpointChange, string, error) {
					return services.EndpointHistory(cmd.Context(), args[0], after, limit)
				})
				if err != nil {
					return err
				}
				if c.output == "json" {
					c.print(map[string]any{"items": items, "next": next})
					return nil
				}
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				for _, change := range items {
					by := change.SentBy
					if by == "" {
						by = "nobody named"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", change.CreatedAt, change.Kind, by, oneLine(members(change.Changes), 120))
				}
				_ = w.Flush()
				c.more(next)
				return nil
			})
		},
	}
	c.pageFlags(cmd, &limit, &after)
	return c.withOutput(cmd)
}

// members says what a change changed.
func members(changes []query.MemberChange) string {
	var words []string
	for _, m := range changes {
		words = append(words, fmt.Sprintf("%s: %s → %s", m.Member, value(m.Before), value(m.After)))
	}
	return strings.Join(words, "; ")
}

func value(came *json.RawMessage) string {
	if came == nil {
		return "none"
	}
	return string(*came)
}
