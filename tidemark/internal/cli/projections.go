package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// projectionFlag adds the flag that names one projection.
func (c *command) projectionFlag(cmd *cobra.Command, named *string, usage string) {
	cmd.Flags().StringVar(named, "projection", "", usage)
	_ = cmd.RegisterFlagCompletionFunc("projection", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		services, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer services.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second) // somebody waits at the keyboard
		defer cancel()
		names, err := projectionNames(ctx, services)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// projectionNames are those that consumer-service knows.
func projectionNames(ctx context.Context, services *client.Client) ([]string, error) {
	all, err := services.Rebuildable(ctx)
	var names []string
	for _, p := range all {
		names = append(names, p.Projection)
	}
	return names, err
}

// named is the one projection that was asked for, or all of them where none was.
func named(all []string, one string) ([]string, error) {
	if one == "" {
		return all, nil
	}
	if !slices.Contains(all, one) {
		return nil, end(misused, "there is no projection %q: there are %s", one, list(all))
	}
	return []string{one}, nil
}

// list puts words in a row, as in "a, b and c".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
