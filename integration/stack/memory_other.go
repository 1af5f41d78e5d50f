//go:build !linux

package stack

import "errors"

// PeakMemory is told on Linux only.
func (s *Service) PeakMemory() (int64, error) {
	return 0, errors.New("the peak memory of a process is told on Linux only")
}
