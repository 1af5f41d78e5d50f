package web

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/generation"
)

// The phases that are shown are those that this rebuild has: a new log is swapped in without a verification, and nobody has
// asked yet to swap what is only built.
func TestTheStagesAreThoseOfThisRebuild(t *testing.T) {
	t.Parallel()
	point := "timestamp.command.v1/0@7"
	verified, differs := &generation.Proof{OK: true}, &generation.Proof{}
	for name, tc := range map[string]struct {
		g        generation.Generation
		swapping bool
		want     string
	}{
		"queued":              {generation.Generation{State: generation.Queued, SwapWanted: true}, false, "Fill open, Index open, Verify open, Swap open"},
		"filling":             {generation.Generation{State: generation.Filling, SwapWanted: true}, false, "Fill now, Index open, Verify open, Swap open"},
		"verifying":           {generation.Generation{State: generation.Ready, SwapWanted: true, ProofWanted: true}, false, "Fill done, Index done, Verify now, Swap open"},
		"a difference":        {generation.Generation{State: generation.Ready, SwapWanted: true, Proof: differs}, false, "Fill done, Index done, Verify failed, Swap open"},
		"verified":            {generation.Generation{State: generation.Ready, SwapWanted: true, Proof: verified}, false, "Fill done, Index done, Verify done, Swap now"},
		"swapping":            {generation.Generation{State: generation.Ready, SwapWanted: true}, true, "Fill done, Index done, Verify done, Swap now"},
		"serving":             {generation.Generation{State: generation.Serving}, false, "Fill done, Index done, Verify done, Swap done"},
		"new log":             {generation.Generation{State: generation.Filling, SwapWanted: true, NewLog: true}, false, "Fill now, Index open, Swap open"},
		"new log, swapping":   {generation.Generation{State: generation.Ready, SwapWanted: true, NewLog: true}, true, "Fill done, Index done, Swap now"},
		"new log, serving":    {generation.Generation{State: generation.Serving, NewLog: true}, false, "Fill done, Index done, Swap done"},
		"build only":          {generation.Generation{State: generation.Indexing}, false, "Fill done, Index now"},
		"built":               {generation.Generation{State: generation.Ready}, false, "Fill done, Index done"},
		"built, verified":     {generation.Generation{State: generation.Ready, Proof: verified}, false, "Fill done, Index done, Verify done"},
		"built, a difference": {generation.Generation{State: generation.Ready, Proof: differs}, false, "Fill done, Index done, Verify failed"},
		"to a point":          {generation.Generation{State: generation.Filling, Point: &point}, false, "Fill now, Hold open"},
		"at its point":        {generation.Generation{State: generation.Held, Point: &point}, false, "Fill done, Hold done"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := viewGeneration(tc.g, tc.swapping)
			var steps []string
			for _, s := range v.Steps {
				steps = append(steps, s.Name+" "+s.State)
			}
			require.Equal(t, tc.want, strings.Join(steps, ", "))
			if tc.g.NewLog {
				require.NotContains(t, v.Headline(), "Verified", "it was not")
			}
		})
	}
}
