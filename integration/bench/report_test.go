package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
)

// run is one measured value and, where there is one, the reference measured beside it.
type run struct {
	Value     float64 `json:"value"`
	Reference float64 `json:"reference,omitempty"`
}

type result struct {
	Name      string  `json:"name"`
	Unit      string  `json:"unit"`
	Value     float64 `json:"value"`
	Reference float64 `json:"reference,omitempty"`
	Ratio     float64 `json:"ratio,omitempty"`
	Runs      []run   `json:"runs"`
}

var reported struct {
	sync.Mutex
	results []result
}

// TestMain prints what the benchmarks reported as a table and, where BENCH_JSON names a file, writes it
// there with the machine's description.
func TestMain(m *testing.M) {
	code := m.Run()
	for _, built := range programs.built {
		_ = built.Remove() // temporary files
	}
	if len(reported.results) > 0 {
		if err := publish(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// report notes the result of alternating runs and shows its median as the benchmark's metric.
func report(b *testing.B, name, unit string, runs []run) {
	b.Helper()
	require.NotEmpty(b, runs)
	var values, references, ratios []float64
	for _, r := range runs {
		values = append(values, r.Value)
		if r.Reference != 0 {
			references, ratios = append(references, r.Reference), append(ratios, r.Value/r.Reference)
		}
	}
	r := result{Name: name, Unit: unit, Value: median(values), Runs: runs}
	if len(references) > 0 {
		r.Reference, r.Ratio = median(references), median(ratios)
		b.ReportMetric(r.Ratio, name+"-ratio")
	}
	b.ReportMetric(r.Value, name+"-"+unit)
	b.ReportMetric(0, "ns/op")
	reported.Lock()
	defer reported.Unlock()
	reported.results = append(reported.results, r)
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if n := len(x); n%2 == 0 {
		return (x[n/2-1] + x[n/2]) / 2
	}
	return x[len(x)/2]
}

func publish() error {
	machine := describe()
	fmt.Printf("\n%s\n\n", machine)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "what\tmedian\tunit\treference\tratio\tmin..max\truns\t") // to stdout
	for _, r := range reported.results {
		reference, ratio := "-", "-"
		if r.Reference != 0 {
			reference, ratio = number(r.Reference), fmt.Sprintf("%.2f", r.Ratio)
		}
		least, most := r.Runs[0].Value, r.Runs[0].Value
		for _, one := range r.Runs {
			least, most = min(least, one.Value), max(most, one.Value)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s..%s\t%d\t\n", r.Name, number(r.Value), r.Unit, reference, ratio, number(least), number(most), len(r.Runs))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	file := os.Getenv("BENCH_JSON")
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(map[string]any{"machine": machine, "at": time.Now().UTC().Format(time.RFC3339), "results": reported.results}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o600)
}

func number(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func describe() string {
	cpu, memory := "an unnamed processor", ""
	for _, line := range lines("/proc/cpuinfo") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			cpu = strings.TrimLeft(name, "\t :")
			break
		}
	}
	for _, line := range lines("/proc/meminfo") {
		if total, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			memory = ", " + strings.TrimSpace(total) + " of memory"
			break
		}
	}
	return fmt.Sprintf("%s/%s, %d x %s%s, %s; Apache Kafka, PostgreSQL, the services and the load on the same machine",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpu, memory, runtime.Version())
}

func lines(file string) []string {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil // the description is shorter
	}
	return strings.Split(string(text), "\n")
}
