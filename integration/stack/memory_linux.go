package stack

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// PeakMemory returns the most memory the process has had resident since its start, in bytes
// (VmHWM of /proc/PID/status).
func (s *Service) PeakMemory() (int64, error) {
	p := s.current()
	if p == nil || !p.running() {
		return 0, fmt.Errorf("%s is not running", s.Name())
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of %s: %w", s.Name(), err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of %s: %w", s.Name(), err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("the memory of %s is not told", s.Name())
}
