package cli

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/auth"
)

// keyEntry is the JSON of one key. Key is there once, when it is made.
type keyEntry struct {
	ID      string       `json:"id"`
	Name    string       `json:"name"`
	Scopes  []auth.Scope `json:"scopes"`
	State   string       `json:"state"`
	Created time.Time    `json:"created"`
	Expires *time.Time   `json:"expires"`
	Revoked *time.Time   `json:"revoked"`
	Key     string       `json:"key,omitempty"`
}

func newKeyEntry(e auth.Entry, key string) keyEntry {
	return keyEntry{e.ID, e.Name, e.Scopes, e.State(time.Now()), e.Created, e.Expires, e.Revoked, key}
}

func (c *command) keys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, list and revoke API keys in a keys file",
		Long: `Make, list and revoke API keys. They live in a file of hashes that the services are given as API_KEYS_FILE; a change takes
effect within seconds, without a restart. The file is the one that --file names, or else API_KEYS_FILE.
` + exitStatuses,
	}
	cmd.AddCommand(c.keysCreate(), c.keysList(), c.keysRevoke())
	return cmd
}

func (c *command) keysFile(cmd *cobra.Command, file *string) *cobra.Command {
	cmd.Flags().StringVar(file, "file", c.Environ["API_KEYS_FILE"], "keys file")
	checked := c.withOutput(cmd)
	before := checked.PreRunE
	checked.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *file == "" {
			return errors.New("no keys file: name one with --file or API_KEYS_FILE")
		}
		return before(cmd, args)
	}
	return checked
}

func (c *command) keysCreate() *cobra.Command {
	var file, name, expires string
	var scopes []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it, this once",
		Long: `Make a key, add its hash to the keys file, which is made where it is missing, and print the key. It is kept nowhere, so it
cannot be shown again.

Scopes: read, write, admin (which includes both).
` + exitStatuses,
		Example: "  tidemark keys create --file keys --name ci --scope write --expires 2160h",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			now := time.Now()
			end, err := expiry(expires, now)
			if err != nil {
				return &ended{misused, err}
			}
			e, key, err := auth.Create(file, name, scopes, end, now)
			if errors.Is(err, auth.ErrNotMade) {
				return &ended{misused, err}
			}
			if err != nil {
				return &ended{failed, fmt.Errorf("make a key: %w", err)}
			}
			rows := [][2]string{{"key", key}, {"id", e.ID}, {"name", e.Name}, {"scopes", joined(e.Scopes)}, {"expires", day(e.Expires)}}
			c.print(newKeyEntry(e, key), rows...)
			fmt.Fprintln(c.Err, "Keep it now: it is not stored and cannot be shown again.")
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the key is for (required)")
	cmd.Flags().StringSliceVar(&scopes, "scope", nil, "read, write or admin; several by commas (required)")
	cmd.Flags().StringVar(&expires, "expires", "", "when it ends: a duration from now such as 2160h, a day, or an RFC 3339 instant; never unless given")
	_ = cmd.MarkFlagRequired("name")  // the flag exists
	_ = cmd.MarkFlagRequired("scope") // the flag exists
	return c.keysFile(cmd, &file)
}

func (c *command) keysList() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys of a keys file, without the keys themselves",
		Long: `List the keys of a keys file. The keys themselves are not in it, only their hashes. The state of a key is active, expired, revoked,
or lost: the file had it and has not any more. Bring the file's old version back, or revoke the lost key to forget it.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			entries, lost, err := auth.ReadFile(file)
			if err != nil {
				return &ended{failed, err}
			}
			list := make([]keyEntry, len(entries))
			for i, e := range entries {
				list[i] = newKeyEntry(e, "")
			}
			if c.output == "json" {
				c.print(map[string]any{"keys": list, "lost": lost})
				return nil
			}
			w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSTATE\tSCOPES\tNAME\tCREATED\tEXPIRES\tREVOKED")
			for _, e := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.State, joined(e.Scopes), e.Name, day(&e.Created), day(e.Expires), day(e.Revoked))
			}
			for _, l := range lost {
				fmt.Fprintf(w, "%s\tlost\t\t%s\t\t\t\n", l.ID, l.Name)
			}
			_ = w.Flush()
			if len(lost) > 0 {
				fmt.Fprintf(c.Err, "The file has lost %d of its keys, which are refused: was it cut?\n", len(lost))
			}
			return nil
		},
	}
	return c.keysFile(cmd, &file)
}

func (c *command) keysRevoke() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key, for good",
		Long: `End a key, for good. Its entry stays in the file, so that the list says what there was. Services that have the file refuse the
key within seconds.
` + exitStatuses,
		Example: "  tidemark keys revoke k3v5oq2mda --file keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			e, err := auth.Revoke(file, args[0], time.Now())
			if errors.Is(err, auth.ErrNoKey) {
				return end(notYet, "%w", err)
			}
			if err != nil {
				return &ended{failed, err}
			}
			c.print(newKeyEntry(e, ""), [2]string{"id", e.ID}, [2]string{"name", e.Name}, [2]string{"revoked", day(e.Revoked)})
			return nil
		},
	}
	return c.keysFile(cmd, &file)
}

// expiry reads a duration from now, a day (whose end in UTC it is) or an instant.
func expiry(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(d), nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t.AddDate(0, 0, 1), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--expires %q is neither a duration such as 2160h, nor a day such as 2027-01-31, nor an RFC 3339 instant", text)
	}
	return t, nil
}

func joined(scopes []auth.Scope) string {
	texts := make([]string, len(scopes))
	for i, s := range scopes {
		texts[i] = string(s)
	}
	return strings.Join(texts, ",")
}

func day(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
