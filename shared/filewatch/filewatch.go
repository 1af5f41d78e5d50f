// Package filewatch tells when a file that is watched for changes has been written to its end.
//
// A file that is edited in place can be read while half of it is there, and that half may look whole: a list that is cut at the
// end of a line, a certificate without the rest of its chain. So a change counts once the file has been the same for
// StillFor. A writer that pauses for longer is not noticed; replacing a file by a rename leaves nothing to notice.
package filewatch

import (
	"bytes"
	"time"
)

const (
	// LookEvery is how often a watched file is looked at.
	LookEvery = time.Second
	// StillFor is how long a file must be the same before its change counts.
	StillFor = 3 * time.Second
)

// Versions follows what is read of some files that belong together. The zero value has read nothing. It is not safe for concurrent use.
type Versions struct {
	latest []byte
	since  time.Time
}

// Still takes what was read at now, and reports whether the same was read for StillFor. Contents are compared, not
// times, so an edit in place, a rename over the name and an exchange of the folder behind a link are all seen.
func (v *Versions) Still(now time.Time, contents ...[]byte) bool {
	read := bytes.Join(contents, []byte{0})
	if !bytes.Equal(read, v.latest) {
		v.latest, v.since = read, now
	}
	return now.Sub(v.since) >= StillFor
}
