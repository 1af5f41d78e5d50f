package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

type run struct {
	Value     float64 `json:"value"`
	Reference float64 `json:"reference"`
}

type result struct {
	Name      string  `json:"name"`
	Unit      string  `json:"unit"`
	Value     float64 `json:"value"`
	Reference float64 `json:"reference"`
	Ratio     float64 `json:"ratio"`
	Runs      []run   `json:"runs"`
}

// report prints the result of alternating runs and shows the ratio as the benchmark's metric.
func report(b *testing.B, name, unit string, runs []run) {
	b.Helper()
	var values, references, ratios []float64
	for _, r := range runs {
		values, references, ratios = append(values, r.Value), append(references, r.Reference), append(ratios, r.Value/r.Reference)
	}
	line, err := json.Marshal(result{name, unit, median(values), median(references), median(ratios), runs})
	require.NoError(b, err)
	_, err = fmt.Fprintf(os.Stdout, "%s\n", line)
	require.NoError(b, err)
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(values), unit)
	b.ReportMetric(0, "ns/op")
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if n := len(x); n%2 == 0 {
		return (x[n/2-1] + x[n/2]) / 2
	}
	return x[len(x)/2]
}
