package compose_test

import "testing"

func keysFile(t *testing.T) []byte {
	t.Helper()
	return []byte(`{"keys":[]}`)
}
