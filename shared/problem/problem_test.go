package problem

import (
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	Write(w, Problem{Status: 503, Detail: "try again", Instance: "urn:correlation:x", Extra: map[string]string{"ticket": "t", "status": "shadowed"}})
	require.Equal(t, 503, w.Code)
	require.Equal(t, ContentType, w.Header().Get("Content-Type"))
	require.JSONEq(t, `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"try again","instance":"urn:correlation:x","ticket":"t"}`, w.Body.String())
}
